"""Choosing layers by name, glob or position."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from aniso.errors import InputError

Selection = str | int | Sequence[str | int] | None


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key under which layer.2 comes before layer.10."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts], name


def select_names(
    selection: Selection, default: Sequence[str], known: Sequence[str] = ()
) -> list[str]:
    """The chosen names, each once, in the order of `default`, then of `known`.

    Args:
        selection: Names, globs, integers (positions in `default`, negative from the end), or a
            sequence of them. None takes all of `default`. A glob looks in `default` first.
        default: The layers in order of execution.
        known: Further names that may be asked for.

    Raises:
        InputError: something matches nothing; the sentence lists near names.
    """
    if selection is None:
        return list(default)
    wanted = [selection] if isinstance(selection, str | int) else list(selection)
    if not wanted:
        raise InputError("no layer was named; name at least one, or leave layers out for all")
    names = list(dict.fromkeys([*default, *known]))
    chosen = {name for item in wanted for name in _match(item, default, names)}
    return [name for name in names if name in chosen]


def _match(item: str | int, default: Sequence[str], names: list[str]) -> list[str]:
    text = str(item)
    if text in names:
        return [text]
    if re.fullmatch(r"-?\d+", text):
        if -len(default) <= int(text) < len(default):
            return [default[int(text)]]
        raise InputError(f"there is no layer {text}; there are {len(default)}, from 0")
    # A glob means layers: modules inside them only where no layer matches.
    matched = [name for name in default if fnmatchcase(name, text)]
    matched = matched or [name for name in names if fnmatchcase(name, text)]
    if not matched:
        near = get_close_matches(text, names, n=3, cutoff=0.3) or list(default[:3])
        raise InputError(f"no layer matches {text!r}; near names are {', '.join(near)}")
    return matched
