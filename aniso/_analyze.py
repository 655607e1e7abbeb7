"""The main job: rows on disk → states → metrics → report."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from aniso._files import writable_folder
from aniso._interrupt import Interrupt, deferred_interrupt
from aniso._names import Selection, select_names
from aniso.dumps import Dump, DumpBlock, DumpLayer, open_dump
from aniso.errors import InputError
from aniso.ops._arrays import first_nonfinite_row
from aniso.progress import Progress, ProgressMode
from aniso.report import Report
from aniso.state import STATE_SUFFIX, LayerState

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from aniso.dumps import Part

_PARTIAL = ".aniso-partial"
_CHECKPOINT_SECONDS = 60.0

Source = str | os.PathLike[str] | Dump


def analyze(
    source: Source | Sequence[Source],
    *,
    out: str | os.PathLike[str] | None = None,
    layers: Selection = None,
    gram: bool = True,
    strict: bool = False,
    resume: bool = True,
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
        progress: Show progress on stderr; "json" for JSON lines.

    Returns:
        Report: layers in order of execution, metrics, provenance.

    Raises:
        InputError: a source that cannot be read, no rows, no such layer, `out` not writable, or
            a non-finite row when strict. No result is written then.
        KeyboardInterrupt: interrupted; with `out`, what was done is saved for `resume`.

    Time O(N d²) per layer (O(N d) without the Gram), memory O(d²) whatever N.

    Example:
        >>> analyze("dump/", out="report/").layers  # doctest: +SKIP
    """
    sources = [source] if isinstance(source, str | os.PathLike | Dump) else list(source)
    dumps = [s if isinstance(s, Dump) else open_dump(s) for s in sources]
    if not dumps:
        raise InputError("no dump was given; pass at least one")
    work = _layers_to_read(dumps, layers)
    folder = None if out is None else writable_folder(Path(out))
    run = _Run(folder, gram=gram, strict=strict, resume=resume)
    rows = sum(layer.rows for parts in work.values() for layer in parts)
    try:
        with (
            deferred_interrupt(run.after_interrupt) as ask,
            Progress("analyze", rows, progress) as shown,
        ):
            states = {name: run.layer(name, parts, shown, ask) for name, parts in work.items()}
    except InputError:
        # Rows that cannot be used: a later run can never go on from here.
        run.discard()
        raise
    pooled = [
        f"{name}: the rows of {len(parts)} dumps are taken together"
        for name, parts in work.items()
        if len(parts) > 1
    ]
    report = report_of(states, {"sources": [_describe(dump) for dump in dumps]}, pooled)
    if folder is not None:
        write_results(report, states, folder)
        run.discard()
    return report


def report_of(
    states: Mapping[str, LayerState], provenance: Mapping[str, Any], notes: Sequence[str] = ()
) -> Report:
    """The report on finished states; adds version and time to the provenance, and notes."""
    stamp = {"aniso": version("aniso"), "created": datetime.now(UTC).isoformat(timespec="seconds")}
    found = [note for name, state in states.items() for note in _notes(name, state)]
    layers = {name: state.compute() for name, state in states.items()}
    return Report(layers=layers, provenance={**stamp, **provenance}, notes=(*notes, *found))


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
        paths.append(folder / _state_name(name))
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


def _state_name(layer: str) -> str:
    return f"{quote(layer, safe=' ')}{STATE_SUFFIX}"


class _Run:
    """One analysis: folds layers into states and keeps what an interruption must not lose."""

    def __init__(self, folder: Path | None, *, gram: bool, strict: bool, resume: bool) -> None:
        self._folder = folder
        self._gram, self._strict, self._resume = gram, strict, resume

    def layer(
        self, name: str, parts: list[DumpLayer], shown: Progress, interrupt: Interrupt
    ) -> LayerState:
        """The state of all rows of a layer."""
        state = self._resumed(name, parts) or LayerState(parts[0].dim, gram=self._gram)
        shown.skip(sum(b - a for ranges in state.sources.ranges.values() for a, b in ranges))
        saved = time.monotonic()
        for block in itertools.chain(*(p.blocks(state.sources.rows_done) for p in parts)):
            self._fold(state, block)
            shown.advance(len(block.rows), block.rows.nbytes)
            if interrupt.requested or time.monotonic() - saved > _CHECKPOINT_SECONDS:
                self._checkpoint(name, state)
                saved = time.monotonic()
            interrupt.raise_if_requested()
        self._checkpoint(name, state)
        return state

    def _fold(self, state: LayerState, block: DumpBlock) -> None:
        if self._strict and (row := first_nonfinite_row(block.rows)) is not None:
            raise InputError(
                f"{block.path} has a NaN or infinite value in row {block.block.start + row}; "
                "mend it, or leave out strict to skip and count such rows"
            )
        state.update(block.rows, _mask_of(block), block=block.block)

    def discard(self) -> None:
        """Removes the unfinished states."""
        if self._folder is not None:
            shutil.rmtree(self._folder / _PARTIAL, ignore_errors=True)

    @property
    def after_interrupt(self) -> str:
        """What to tell the user who pressed Ctrl-C."""
        if self._folder is None or not self._resume:
            return "nothing was saved; name an output folder to go on from where a run stopped"
        return f"the rows done are saved in {self._folder}; run the same command again to go on"

    def _checkpoint(self, name: str, state: LayerState) -> None:
        if self._folder is not None and state.sources.ranges:
            writable_folder(self._folder / _PARTIAL)
            state.save(self._folder / _PARTIAL / _state_name(name), layer=name)

    def _resumed(self, name: str, parts: list[DumpLayer]) -> LayerState | None:
        """The furthest state of an earlier run that holds rows of these parts alone."""
        if self._folder is None or not self._resume:
            return None
        known = {part.source: part.shape[0] for part in _stored(parts)}
        for folder in (self._folder / _PARTIAL, self._folder):
            path = folder / _state_name(name)
            if path.exists() and self._fits(state := LayerState.load(path), known):
                return state
        return None

    def _fits(self, state: LayerState, known: dict[str, int]) -> bool:
        """Whether the state holds the first rows of some of these sources, and no other rows."""
        done = {source: state.sources.rows_done(source) for source in state.sources.ranges}
        prefixes = all(
            source in known and done[source] == ranges[-1][1] <= known[source]
            for source, ranges in state.sources.ranges.items()
        )
        seen = int(state.moments.counts[[0, 2, 3]].sum())
        clean = not (self._strict and state.moments.nonfinite_rows)
        same = (state.grams is not None) == self._gram
        return prefixes and sum(done.values()) == seen > 0 and clean and same


def _mask_of(block: DumpBlock) -> Tensor | None:
    """The rows that the dump's attention mask keeps."""
    mask = block.ids.get("attention_mask")
    return None if mask is None else mask != 0
