"""Several state files into one."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

from aniso.errors import InputError
from aniso.state import (
    LayerState,
    PairedState,
    RowSample,
    SequenceState,
    SketchState,
    is_state,
    state_facts,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (LayerState, PairedState, RowSample, SequenceState, SketchState)
}


def merge_states(paths: Sequence[Path], out: Path) -> Any:
    """Merges saved states of one kind and layer and saves the result.

    Args:
        paths: Files that `save` wrote.
        out: The file to write, `*.state.safetensors`.

    Returns:
        The merged state.

    Raises:
        InputError: a file that is no state, states of unlike kind, layer or width, a file given
            twice, or rows that two of them hold; nothing is written then.

    Time O(d²) per file, memory two states whatever their number.
    """
    if not is_state(out):
        raise InputError(f"{out} is no name of a state; let it end in .state.safetensors")
    _refuse_twice(paths)
    facts = [state_facts(path) for path in paths]
    kind, layer = facts[0]
    for path, found in zip(paths, facts, strict=True):
        if found != (kind, layer):
            raise InputError(
                f"{paths[0]} is a {kind} of {_named(layer)}, {path} a {found[0]} of "
                f"{_named(found[1])}; merge states of one kind and layer"
            )
    states = (_load(kind, path) for path in paths)
    merged = reduce(_merge, states)[1]
    try:
        merged.save(out, layer=layer)
    except OSError as error:
        raise InputError(f"cannot write {out} ({error.strerror}); choose another place") from error
    return merged


def _load(kind: str, path: Path) -> tuple[Path, Any]:
    if kind not in _KINDS:
        raise InputError(f"{path} holds a {kind}, which this aniso does not know; upgrade it")
    return path, _KINDS[kind].load(path)


def _merge(left: tuple[Path, Any], right: tuple[Path, Any]) -> tuple[Path, Any]:
    try:
        return right[0], left[1].merge(right[1])
    except InputError as error:
        raise InputError(f"{right[0]} does not go with the states before it: {error}") from error


def _refuse_twice(paths: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for path in paths:
        real = path.resolve()
        if real in seen:
            raise InputError(f"{path} is given twice, its rows would count twice; name it once")
        seen[real] = path


def _named(layer: str | None) -> str:
    return "no named layer" if layer is None else f"layer {layer}"
