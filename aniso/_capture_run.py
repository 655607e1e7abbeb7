"""The main job on a live model: texts → hidden states → metrics → report."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from aniso._analyze import report_of, write_results
from aniso._distributions import RowSampler
from aniso._files import writable_folder
from aniso.dumps import DumpWriter
from aniso.errors import InputError
from aniso.models import TextModel, attach, capture, run_texts
from aniso.ops import select_backend
from aniso.progress import Progress, ProgressMode
from aniso.transform import SoftDecay

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from aniso._names import Selection
    from aniso.report import Report


def capture_texts(
    loaded: TextModel,
    texts: Sequence[str],
    provenance: Mapping[str, Any],
    *,
    layers: Selection = None,
    out: Path | None = None,
    save: Path | None = None,
    soft_decay: Mapping[str, float] | None = None,
    exclude_special_tokens: bool = False,
    gram: bool = True,
    batch_size: int = 32,
    progress: ProgressMode = True,
) -> Report:
    """Captures a model on texts and reports on every layer.

    Args:
        loaded: The model, from `load_model`.
        texts: What to run.
        provenance: What the report says of model and text.
        layers: Names, globs or positions of the layers.
        out: Folder for results.json, report.html and the states.
        save: Folder of a dump to write the rows to as well.
        soft_decay: α of the SoftDecay put on layers, by name, glob or position; what is captured
            is behind it.
        exclude_special_tokens: Leave out [CLS], [SEP] and the like.
        gram: Keep second moments.
        batch_size: Texts per call of the model.
        progress: Show progress on stderr; "json" for JSON lines.
    """
    decays = soft_decay or {}
    transforms = {layer: SoftDecay(alpha) for layer, alpha in decays.items()}
    run = capture(
        loaded.model,
        layers,
        exclude_special_tokens=exclude_special_tokens,
        tokenizer=loaded.tokenizer,
        gram=gram,
    )
    sampler = RowSampler(then=None if save is None else DumpWriter(save, run.layers))
    run.write_to(sampler)
    folder = None if out is None else writable_folder(out)
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
    backend = select_backend("row_moments", next(iter(states.values())).moments.sums).name
    facts = {
        "texts": len(texts),
        "texts_cut_short": cut,
        "max_length": loaded.max_length,
        "special_tokens": "left out" if exclude_special_tokens else "counted",
        "backend": backend,
    }
    if decays:
        facts["soft_decay"] = ", ".join(f"{layer}={alpha:g}" for layer, alpha in decays.items())
    note = f"{cut:,} of {len(texts):,} texts were cut to {loaded.max_length} tokens"
    drawn = sampler.distributions(states)
    report = report_of(states, {**provenance, **facts}, [note] if cut else [], drawn)
    if folder is not None:
        write_results(report, states, folder)
    return report
