"""Two dumps, result folders or state files side by side, layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import torch

from aniso._compare import compare
from aniso._names import Selection, natural_key, select_names
from aniso.dumps import Dump, DumpLayer, open_dump
from aniso.errors import InputError
from aniso.progress import Progress, ProgressMode
from aniso.report import ComparisonReport
from aniso.report._plain import describe
from aniso.state import STATE_SUFFIX, LayerState, PairedState, is_state

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from torch import Tensor

    from aniso.metrics import Comparison

_States = dict[str, Path]
_DUMP_SUFFIXES = (".npy", ".safetensors")


def compare_sources(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    layers: Selection = None,
    progress: ProgressMode = True,
) -> ComparisonReport:
    """Compares two sources layer by layer; where both are dumps of as many rows, row by row.

    Args:
        a: A dump (see `open_dump`), a folder that `analyze` wrote, or one *.state.safetensors.
        b: The other; layers go together by name, and whatever their names when each has one.
        layers: Names, globs or positions of the common layers to compare. Default: all.
        progress: Show progress on stderr; "json" for JSON lines.

    Returns:
        ComparisonReport: a Comparison per layer, and notes on what could not be compared.

    Raises:
        InputError: a source that cannot be read, or no layer in common.

    Time O(N d²) per layer of dumps, memory O(d²) whatever N.
    """
    opened = _open(Path(a)), _open(Path(b))
    names = _names(opened[0]), _names(opened[1])
    pairs, notes = _common(names, (str(a), str(b)))
    work = {name: pairs[name] for name in select_names(layers, list(pairs))}
    rows = sum(
        source[name].rows
        for both in work.values()
        for source, name in zip(opened, both, strict=True)
        if isinstance(source, Dump)
    )
    compared = {}
    remarks: dict[str, list[str]] = {}
    with Progress("compare", rows, progress if rows else False) as shown:
        for name, both in work.items():
            mine, other = map(_source, opened, both)
            compared[name], told = _compare_layer(mine, other, shown)
            for sentence in told:
                remarks.setdefault(sentence, []).append(name)
    notes += [f"{describe(where)}: {sentence}" for sentence, where in remarks.items()]
    if not all(isinstance(source, Dump) for source in opened):
        notes.append(
            "saved states hold no rows: RSA-Pearson and debiased CKA need the dumps of both"
        )
    return ComparisonReport(str(a), str(b), compared, tuple(notes))


def _open(path: Path) -> Dump | _States:
    if path.is_file() and is_state(path):
        return {_layer_of(path): path}
    files = [f for f in path.iterdir() if not f.name.startswith(".")] if path.is_dir() else []
    states = {_layer_of(file): file for file in files if is_state(file)}
    rows = [file for file in files if file.suffix in _DUMP_SUFFIXES and not is_state(file)]
    if not states or rows:
        return open_dump(path)
    order = _stated_order(path / "results.json")
    # A layer without a state there takes no part in the order.
    known = [name for name in order if name in states]
    return {
        name: states[name] for name in dict.fromkeys([*known, *sorted(states, key=natural_key)])
    }


def _layer_of(path: Path) -> str:
    return unquote(path.name.removesuffix(STATE_SUFFIX))


def _stated_order(results: Path) -> list[str]:
    """The layers' names in order of execution, where an analysis left them."""
    if not results.exists():
        return []
    try:
        return [str(layer["name"]) for layer in json.loads(results.read_text())["layers"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{results} is no result of aniso analyze; remove it, its folder is compared without"
        ) from error


def _names(source: Dump | _States) -> list[str]:
    return list(source.layers if isinstance(source, Dump) else source)


def _source(source: Dump | _States, name: str) -> DumpLayer | LayerState:
    if not isinstance(source, Dump):
        return LayerState.load(source[name])
    layer = source[name]
    if not layer.rows:
        raise InputError(f"layer {name} has no rows in {source.path}; pass a dump with rows")
    return layer


def _common(
    names: tuple[list[str], list[str]], paths: tuple[str, str]
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """The layers to compare with their names in both sources, and notes on the others."""
    (mine, other), notes = names, []
    shared = [name for name in mine if name in other]
    if not shared and len(mine) == len(other) == 1:
        return {f"{mine[0]} → {other[0]}": (mine[0], other[0])}, []
    if not shared:
        raise InputError(
            f"{paths[0]} has layers {describe(mine)}, {paths[1]} has {describe(other)}, and none "
            "is in both; compare sources of the same layers, or of one layer each"
        )
    for path, found in zip(paths, names, strict=True):
        rest = [name for name in found if name not in shared]
        if rest:
            notes.append(f"only {path} has {describe(rest)}: not compared")
    return {name: (name, name) for name in shared}, notes


def _compare_layer(
    a: DumpLayer | LayerState, b: DumpLayer | LayerState, shown: Progress
) -> tuple[Comparison, list[str]]:
    """The comparison of one layer, and what the reader has to know about it."""
    if not isinstance(a, DumpLayer) or not isinstance(b, DumpLayer) or a.rows != b.rows:
        notes = []
        if isinstance(a, DumpLayer) and isinstance(b, DumpLayer):
            notes.append(
                f"{a.rows:,} rows in one dump and {b.rows:,} in the other, which cannot be paired: "
                "no RSA-Pearson and no CKA"
            )
        return compare(_state(a, shown), _state(b, shown)), notes
    state = PairedState(a.dim, b.dim)
    for x, y, keep in _paired_blocks(a, b):
        state.update(x, y, keep)
        shown.advance(2 * len(x), x.nbytes + y.nbytes)
    left_out = state.sums.moments_x.nonfinite_rows
    note = f"{left_out:,} of {a.rows:,} rows hold NaN or infinite values and were left out of both"
    return state.compute(), [note] if left_out else []


def _state(source: DumpLayer | LayerState, shown: Progress) -> LayerState:
    if isinstance(source, LayerState):
        return source
    state = LayerState(source.dim)
    for block in source.blocks():
        state.update(block.rows, block.mask)
        shown.advance(len(block.rows), block.rows.nbytes)
    return state


def _paired_blocks(a: DumpLayer, b: DumpLayer) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The same rows of both, however they lie in files, and which of them both masks keep."""
    blocks = _masked_blocks(a), _masked_blocks(b)
    (x, keep_x), (y, keep_y) = next(blocks[0]), next(blocks[1])
    done = 0
    while done < a.rows:
        x, keep_x = (x, keep_x) if len(x) else next(blocks[0])
        y, keep_y = (y, keep_y) if len(y) else next(blocks[1])
        both = min(len(x), len(y))
        yield x[:both], y[:both], keep_x[:both] & keep_y[:both]
        x, keep_x, y, keep_y = x[both:], keep_x[both:], y[both:], keep_y[both:]
        done += both


def _masked_blocks(layer: DumpLayer) -> Iterator[tuple[Tensor, Tensor]]:
    for block in layer.blocks():
        mask = block.mask
        yield block.rows, torch.ones(len(block.rows), dtype=torch.bool) if mask is None else mask
