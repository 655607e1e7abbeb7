"""The main job: rows on disk → states → metrics → report."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from aniso._checkpoints import state_name
from aniso._distributions import dump_distributions
from aniso._files import writable_folder
from aniso._fold import Fold
from aniso._interrupt import deferred_interrupt
from aniso._names import Selection, select_names
from aniso.distributed import Ranks, joined_ranks
from aniso.dumps import Dump, DumpLayer, open_dump
from aniso.errors import InputError
from aniso.progress import Progress, ProgressMode
from aniso.report import Report

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from aniso.dumps import Part
    from aniso.metrics import CosineHistogram, LayerMetrics
    from aniso.state import LayerState

Source = str | os.PathLike[str] | Dump


def analyze(
    source: Source | Sequence[Source],
    *,
    out: str | os.PathLike[str] | None = None,
    layers: Selection = None,
    gram: bool = True,
    strict: bool = False,
    resume: bool = True,
    deterministic: bool = False,
    progress: ProgressMode = True,
) -> Report:
    """Every metric of every layer of a dump, in one pass over its rows.

    Args:
        source: Path of a dump (see `open_dump`), a Dump, or several; layers of one name are summed.
        out: Folder for results.json, report.html and one <layer>.state.safetensors per layer.
        layers: Names, globs or positions of the layers to read. Default: all.
        gram: Keep second moments; without them no variance and no spectra, but O(n d) work.
        strict: Raise at the first non-finite row instead of counting it.
        resume: Take over states that an earlier run on the same rows left in `out`.
        deterministic: Compute with one thread in each process. aniso's own kernels give the same
            bits with any number of threads; torch's products, which serve float64 rows, may not.
        progress: Show progress on stderr; "json" for JSON lines.

    Under torchrun every process takes its share of the blocks; the first one merges the states and
    writes. Blocks are summed in leaves of eight or more, and leaves in a fixed binary tree: any
    number of processes gives the same results.json, digit for digit.

    Returns:
        Report: layers in order of execution, metrics, provenance.

    Raises:
        InputError: a source that cannot be read, no rows, no such layer, `out` not writable, or
            a non-finite row when strict. No result is written then; what was done is kept for
            `resume` unless such a row ended it.
        KeyboardInterrupt: interrupted; with `out`, what was done is saved for `resume`.

    Time O(N d²) per layer (O(N d) without the Gram), memory O(d²) times the height of the tree: 13
    states of 16 d² bytes at 1.6 TB.

    Example:
        >>> analyze("dump/", out="report/").layers  # doctest: +SKIP
    """
    sources = [source] if isinstance(source, str | os.PathLike | Dump) else list(source)
    dumps = [s if isinstance(s, Dump) else open_dump(s) for s in sources]
    if not dumps:
        raise InputError("no dump was given; pass at least one")
    work = _layers_to_read(dumps, layers)
    with joined_ranks() as ranks, _threads(1 if deterministic else None):
        folder = _prepared(out, ranks)
        fold = Fold(folder, ranks, gram=gram, strict=strict, resume=resume)
        states = _states(fold, work, ranks, progress)
        report = None
        if states is not None:
            facts = {"sources": [_describe(dump) for dump in dumps]}
            drawn = dump_distributions(work, states)
            report = report_of(states, facts, _pooled(work), drawn)
            if folder is not None:
                _write(report, states, folder)
                fold.checkpoints.discard()
        return ranks.broadcast(report)


def _write(report: Report, states: Mapping[str, LayerState], folder: Path) -> None:
    try:
        write_results(report, states, folder)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot write the results to {folder} ({error}); mend that and run the same command "
            "again, no row is read twice"
        ) from error


def _prepared(out: str | os.PathLike[str] | None, ranks: Ranks) -> Path | None:
    """The output folder, made by the first process while the others wait."""
    error = None
    if out is not None and ranks.rank == 0:
        try:
            writable_folder(Path(out))
        except InputError as refused:
            error = refused
    ranks.agree(error)
    return None if out is None else Path(out)


def _states(
    fold: Fold, work: dict[str, list[DumpLayer]], ranks: Ranks, progress: ProgressMode
) -> dict[str, LayerState] | None:
    """The state of every layer on the first process; None on the others."""
    rows = sum(layer.rows for parts in work.values() for layer in parts) // ranks.world
    title = "analyze" if ranks.world == 1 else f"analyze, share 1 of {ranks.world}"
    shown_here = progress if ranks.rank == 0 else False
    error, trees = None, {}
    try:
        with (
            deferred_interrupt(fold.after_interrupt) as ask,
            Progress(title, rows, shown_here) as shown,
        ):
            fold.begin()
            trees = {name: fold.layer(name, parts, shown, ask) for name, parts in work.items()}
    except InputError as refused:
        error = refused
    ranks.agree(error)
    joined = {name: ranks.gather(tree) for name, tree in trees.items()}
    return {name: tree.total() for name, tree in joined.items() if tree is not None} or None


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Computes with so many threads; None leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pooled(work: dict[str, list[DumpLayer]]) -> list[str]:
    return [
        f"{name}: the rows of {len(parts)} dumps are taken together"
        for name, parts in work.items()
        if len(parts) > 1
    ]


def report_of(
    states: Mapping[str, LayerState],
    provenance: Mapping[str, Any],
    notes: Sequence[str] = (),
    distributions: Mapping[str, CosineHistogram] | None = None,
    layers: dict[str, LayerMetrics] | None = None,
) -> Report:
    """The report on finished states, by their own metrics or those that are given.

    Adds version and time to the provenance, and notes.
    """
    stamp = {"aniso": version("aniso"), "created": datetime.now(UTC).isoformat(timespec="seconds")}
    found = [note for name, state in states.items() for note in _notes(name, state)]
    if layers is None:
        layers = {name: state.compute() for name, state in states.items()}
    groups = {name: state.group_cosine() for name, state in states.items() if state.groups}
    facts = {**stamp, **provenance}
    return Report(layers, facts, (*notes, *found), dict(distributions or {}), groups)


def _notes(name: str, state: LayerState) -> Iterator[str]:
    """What the reader of one layer's numbers has to know."""
    rows, left_out = state.moments.rows, state.moments.nonfinite_rows
    if left_out:
        yield (
            f"{name}: {left_out:,} of {rows + left_out:,} rows hold NaN or infinite values "
            "and were left out"
        )
    if 0 < rows <= state.dim and state.grams is not None:
        yield f"{name}: {rows:,} rows in {state.dim:,} dimensions bound every rank by the rows"


def write_results(report: Report, states: Mapping[str, LayerState], folder: Path) -> list[Path]:
    """Writes one state file per layer, results.json and report.html; returns all paths."""
    paths = []
    for name, state in states.items():
        paths.append(folder / state_name(name))
        state.save(paths[-1], layer=name)
    return paths + report.save(folder)


def _layers_to_read(dumps: list[Dump], layers: Selection) -> dict[str, list[DumpLayer]]:
    names = list(dict.fromkeys(name for dump in dumps for name in dump.layers))
    work = {
        name: [dump[name] for dump in dumps if name in dump.layers]
        for name in select_names(layers, names)
    }
    for name, parts in work.items():
        twice = [s for s, n in Counter(p.source for p in _stored(parts)).items() if n > 1]
        if twice:
            raise InputError(
                f"layer {name} comes twice from {twice[0]}; pass every dump once, its rows would "
                "count twice"
            )
        if not sum(layer.rows for layer in parts):
            raise InputError(
                f"layer {name} has no rows in {', '.join(str(dump.path) for dump in dumps)}; "
                "pass a dump with rows"
            )
        if len({layer.dim for layer in parts}) > 1:
            raise InputError(
                f"layer {name} has {parts[0].dim} columns in one dump and another number in "
                "the next; analyse them apart"
            )
    return work


def _stored(layers: list[DumpLayer]) -> list[Part]:
    return [part for layer in layers for part in layer.parts]


def _describe(dump: Dump) -> dict[str, Any]:
    layers = [dump[name] for name in dump.layers]
    return {"path": str(dump.path), "rows": {layer.name: layer.rows for layer in layers}}
