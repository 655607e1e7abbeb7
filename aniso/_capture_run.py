"""The main job on a live model: texts → hidden states → metrics → report."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aniso._analyze import report_of, write_results
from aniso._distributions import RowSampler
from aniso._files import refuse_too_large, writable_folder
from aniso.dumps import DumpWriter
from aniso.errors import InputError
from aniso.models import CaptureOptions, TextModel, attach, count_tokens, run_texts
from aniso.ops import select_backend
from aniso.progress import Progress, ProgressMode
from aniso.transform import SoftDecay

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch

    from aniso.metrics import LayerMetrics
    from aniso.models import Capture
    from aniso.models.inputs import Groups
    from aniso.report import Report
    from aniso.state import LayerState, SketchState

_DEFAULT = CaptureOptions()


def capture_texts(
    loaded: TextModel,
    texts: Sequence[str],
    provenance: Mapping[str, Any],
    options: CaptureOptions = _DEFAULT,
    *,
    out: Path | None = None,
    save: Path | None = None,
    soft_decay: Mapping[str, float] | None = None,
    batch_size: int = 32,
    progress: ProgressMode = True,
    announce: Callable[[str], None] = lambda text: None,
) -> Report:
    """Captures a model on texts and reports on every layer.

    Args:
        loaded: The model, from `load_model`.
        texts: What to run.
        provenance: What the report says of model and text.
        options: What is read and kept of which layers.
        out: Folder for results.json, report.html and the states.
        save: Folder of a dump to write the rows to as well; refused where they do not fit.
        soft_decay: α of the SoftDecay put on layers, by name, glob or position; what is captured
            is behind it.
        batch_size: Texts per call of the model.
        progress: Show progress on stderr; "json" for JSON lines.
        announce: Called with what the states take, before the run.
    """
    decays = soft_decay or {}
    transforms = {layer: SoftDecay(alpha) for layer, alpha in decays.items()}
    run = options.start(loaded.model, loaded.tokenizer)
    if save is not None:
        _refuse_too_many_rows(loaded, texts, options, run, save)
    sampler = RowSampler(then=None if save is None else DumpWriter(save, run.layers))
    run.write_to(sampler)
    folder = None if out is None else writable_folder(out)
    announce(str(run.memory))
    with ExitStack() as stack:
        # Hooks run in the order of their registration: transforms first, then the capture.
        for layer, transform in transforms.items():
            stack.enter_context(attach(loaded.model, layer, transform))
        shown = stack.enter_context(Progress("capture", len(texts), progress, unit="texts"))
        stack.enter_context(run)
        cut = run_texts(loaded, texts, batch_size=batch_size, after_batch=shown.advance)
    states = run.finished()
    if not any(state.moments.rows for state in states.values()):
        raise InputError("no token is left to analyse; take longer texts or a longer max-length")
    computed, drawn = run.compute(), sampler.distributions(states)
    note = f"{cut:,} of {len(texts):,} texts were cut to {loaded.max_length} tokens"
    notes = [*([note] if cut else []), *_left_out_notes(computed)]
    counts = {"texts": len(texts), "texts_cut_short": cut, "max_length": loaded.max_length}
    facts = {**provenance, **counts, **_provenance(run, states, options, decays)}
    report = report_of(states, facts, notes, drawn, computed)
    report = replace(report, facts=_facts(run, states, options.groups))
    if folder is not None:
        write_results(report, states, folder)
    return report


def _refuse_too_many_rows(
    loaded: TextModel, texts: Sequence[str], options: CaptureOptions, run: Capture, save: Path
) -> None:
    """Raises InputError where the rows to be saved do not fit the disk."""
    tokens = count_tokens(loaded, texts, options.excluded(loaded.model, loaded.tokenizer))
    needed = tokens * _row_bytes(run, loaded.model.dtype)
    refuse_too_large(needed, save, f"the rows of {tokens:,} tokens in {len(run.layers)} layers")


def _provenance(
    run: Capture,
    states: Mapping[str, LayerState],
    options: CaptureOptions,
    decays: Mapping[str, float],
) -> dict[str, Any]:
    """What the report says of how the rows were taken."""
    sums = next(iter(states.values())).moments.sums
    facts = {
        "special_tokens": "left out" if options.exclude_special_tokens else "counted",
        "backend": select_backend("row_moments", sums).name,
        "memory": str(run.memory),
    }
    if decays:
        facts["soft_decay"] = ", ".join(f"{layer}={alpha:g}" for layer, alpha in decays.items())
    return facts


def _row_bytes(run: Capture, dtype: torch.dtype) -> int:
    """What a token takes in all layers whose width is known before they run."""
    return sum(point.width or 0 for point in run.points) * dtype.itemsize


def _left_out_notes(layers: Mapping[str, LayerMetrics]) -> list[str]:
    """Where the rows that were left out change the mean cosine most, with both numbers."""
    changed = {
        name: (layer.metrics["mean_cosine"], layer.metrics_of_all["mean_cosine"])
        for name, layer in layers.items()
        if layer.metrics_of_all is not None
    }
    known = {name: (a, b) for name, (a, b) in changed.items() if abs(a - b) > 0}
    if not known:
        return []
    name = max(known, key=lambda name: abs(known[name][0] - known[name][1]))
    without, with_them = known[name]
    return [
        f"the rows that were left out change the mean cosine most in {name}: {without:.4f} without "
        f"them, {with_them:.4f} with them; metrics_of_all in results.json has every layer's"
    ]


def _facts(
    run: Capture, states: Mapping[str, LayerState], groups: Groups | None
) -> dict[str, dict[str, Any]]:
    """What results.json says of every layer besides its metrics."""
    facts = {point.name: point.facts() for point in run.points}
    if groups is not None:
        facts = {name: {**found, "grouped_by": groups} for name, found in facts.items()}
    for name, sketch in run.sketches.items():
        facts[name]["sketch"] = _sketch_facts(sketch, states[name])
    return facts


def _sketch_facts(sketch: SketchState, state: LayerState) -> dict[str, Any]:
    """Bounds of the energy in the leading directions: Ĝ ≼ G, and the trace of G is known."""
    found: dict[str, Any] = {"size": sketch.size}
    energy = float(state.moments.norm_sums[1])
    if not energy or not sketch.rows:
        return found
    axes = sketch.principal_axes(min(10, sketch.size))
    seen = axes.singular_values.square().cumsum(0) / energy
    for k in (1, 3, 10):
        if k <= len(seen):
            share = float(seen[k - 1])
            found[f"explained_variance_{k}"] = [share, min(1.0, share + axes.missing)]
    return found
