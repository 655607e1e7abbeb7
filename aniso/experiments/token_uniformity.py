"""Distributions of singular values by layer, sequence by sequence, before and after SoftDecay."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError
from aniso.experiments._output import number, plain_table, save_results, short_name
from aniso.experiments._plot import Line, Panel, draw, shade
from aniso.metrics import group_cosine, sequence_spectra
from aniso.metrics.sequence_spectra import CDF_STEPS, SEQUENCE_METRICS
from aniso.models import TextModel, attach, hook_points, run_texts
from aniso.progress import Progress, ProgressMode
from aniso.transform import soft_decay

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from rich.table import Table
    from torch import Tensor

    from aniso._names import Selection

_COLUMNS = {
    "sv_skewness": "skewness",
    "sv_median_ratio": "median",
    "explained_variance_1": "EV 1",
    "token_uniformity": "TokenUni",
}


@dataclass(frozen=True)
class Uniformities:
    """Means over the sequences of one layer.

    Attributes:
        metrics: Keys of `SEQUENCE_METRICS` and "token_uniformity", the mean cosine of the pairs of
            a sequence's tokens; NaN where no sequence has one.
        cdf: Mean share of σ/σ₁ at most 0, 1/256, … 1.
    """

    metrics: dict[str, float]
    cdf: list[float]

    def results(self) -> dict[str, Any]:
        """What the JSON file holds of it; a metric that is not defined is null."""
        metrics = {key: number(value) for key, value in self.metrics.items()}
        return {"metrics": metrics, "cdf": [number(share) for share in self.cdf]}


@dataclass(frozen=True)
class TokenUniformityReport:
    """Every layer's sequences as the model gives them, and behind SoftDecay.

    Attributes:
        before, after: By layer, in order of execution.
        provenance: Model, texts, α, mode.
    """

    before: dict[str, Uniformities]
    after: dict[str, Uniformities]
    provenance: dict[str, Any]

    def results(self) -> dict[str, Any]:
        """What the JSON file holds."""
        layers = [
            {"name": name, "before": found.results(), "after": self.after[name].results()}
            for name, found in self.before.items()
        ]
        head = {"schema": 1, "experiment": "token-uniformity"}
        return {**head, "layers": layers, "provenance": self.provenance}

    def table(self) -> Table:
        """One row per layer: each number before → after."""
        table = plain_table("means over sequences, before → after", ["layer", *_COLUMNS.values()])
        for name, before in self.before.items():
            after = self.after[name].metrics
            pairs = ((before.metrics[key], after[key]) for key in _COLUMNS)
            table.add_row(short_name(name), *(f"{a:.3f} → {b:.3f}" for a, b in pairs))
        return table

    def save(self, folder: Path) -> list[Path]:
        """Writes token-uniformity.json, then token-uniformity.svg; returns their paths.

        Raises:
            InputError: matplotlib is not installed; the JSON file is written all the same.
        """
        return save_results(folder, "token-uniformity", self.results(), self._svg)

    def _svg(self) -> str:
        edges = torch.linspace(0, 1, CDF_STEPS + 1).tolist()

        def panel(title: str, layers: Mapping[str, Uniformities]) -> Panel:
            lines = [
                Line(short_name(name), edges, found.cdf, shade(i, len(layers)), dots=False)
                for i, (name, found) in enumerate(layers.items())
            ]
            return Panel(title, "σ/σ₁", lines, y="share of σ at most this")

        return draw([panel("before", self.before), panel("after SoftDecay", self.after)])


@dataclass
class _Sums:
    """Sums over sequences of what is defined, and how many those are."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def update(self, hidden: Tensor, mask: Tensor | None) -> None:
        """Folds in the sequences of hidden [b, t, d]."""
        spectra = sequence_spectra(hidden, mask=mask)
        for key, values in spectra.metrics.items():
            self._add(key, values)
        self._add("cdf", spectra.cdf)
        sentences = torch.arange(len(hidden), device=hidden.device)
        sentences = sentences.repeat_interleave(hidden.shape[1])
        keep = None if mask is None else mask.flatten()
        cosines = group_cosine(hidden.detach().flatten(0, 1), sentences, mask=keep)
        self._add("token_uniformity", cosines.per_group)

    def _add(self, key: str, values: Tensor) -> None:
        defined = values[~values.isnan().reshape(len(values), -1).any(dim=1)]
        self.totals[key] = self.totals.get(key, 0) + defined.sum(dim=0).cpu()
        self.counts[key] = self.counts.get(key, 0) + len(defined)

    def _mean(self, key: str) -> Tensor:
        return self.totals[key] / (self.counts[key] or math.nan)

    def compute(self) -> Uniformities:
        """The means."""
        keys = (*SEQUENCE_METRICS, "token_uniformity")
        cdf: list[float] = self._mean("cdf").tolist()
        return Uniformities({key: float(self._mean(key)) for key in keys}, cdf)


def token_uniformity(
    loaded: TextModel,
    texts: Sequence[str],
    provenance: Mapping[str, Any],
    *,
    alpha: float = -0.6,
    mode: str = "paper",
    layers: Selection = None,
    batch_size: int = 64,
    progress: ProgressMode = True,
) -> TokenUniformityReport:
    """How the singular values of every sequence are distributed, by layer, before and after.

    Each sequence is a matrix of its tokens, special tokens included, padding left out. Every layer
    is measured as the model gives it; SoftDecay is applied to what is measured, not to the model.

    Args:
        loaded: From `load_model`.
        texts: What to run.
        provenance: What the report says of model and texts.
        alpha: α of `aniso.soft_decay`.
        mode: Its mode, "paper" or "continuous".
        layers: Names, globs or positions. Default: the embedding layer and every block.
        batch_size: Texts per call of the model.
        progress: Show progress on stderr; "json" for JSON lines.

    Raises:
        InputError: alpha outside (−1, 0), no such layer, or hidden states that are not finite.

    Reference: Yan et al., "Addressing Token Uniformity in Transformers via Singular Value
    Transformation", UAI 2022, figures 1 and 3.
    """
    soft_decay(torch.eye(2), alpha, mode=mode)  # Refuses before the run.
    before: dict[str, _Sums] = {}
    after: dict[str, _Sums] = {}
    with ExitStack() as stack:
        shown = stack.enter_context(
            Progress("token-uniformity", len(texts), progress, unit="texts")
        )
        for point in hook_points(loaded.model, layers):
            sums = before.setdefault(point.name, _Sums()), after.setdefault(point.name, _Sums())
            reader = _reader(*sums, alpha, mode)
            stack.enter_context(attach(loaded.model, point.name, reader))
        run_texts(loaded, texts, batch_size=batch_size, after_batch=shown.advance)
    for name, measured in before.items():
        if not measured.counts:
            raise InputError(f"layer {name} did not run; choose layers that run")
    facts = {"texts": len(texts), "alpha": alpha, "mode": mode}
    return TokenUniformityReport(
        {name: sums.compute() for name, sums in before.items()},
        {name: sums.compute() for name, sums in after.items()},
        {**provenance, **facts},
    )


def _reader(before: _Sums, after: _Sums, alpha: float, mode: str) -> Callable[..., Tensor]:
    """A transform that changes nothing and measures what passes."""

    def transform(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        before.update(hidden, mask)
        after.update(soft_decay(hidden, alpha, mode=mode, mask=mask), mask)
        return hidden

    return transform
