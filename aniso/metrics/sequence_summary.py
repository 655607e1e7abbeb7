"""How the spectra of many sequences are distributed: additive tallies and what follows."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

from aniso.metrics.sequence_spectra import CDF_STEPS, SEQUENCE_METRICS

if TYPE_CHECKING:
    from torch import Tensor

    from aniso.metrics.sequence_spectra import SequenceSpectra

_BINS = 256
# The skewness of p values is at most √p; shares lie in [0, 1]. What lies outside is counted beside.
_RANGES = {"sv_skewness": (-4.0, 28.0)}


@dataclass(frozen=True)
class SequenceStatistic:
    """One number per sequence, over all sequences that have it.

    Attributes:
        sequences: How many have it.
        mean: Their mean, NaN without sequences; so are std, min and max.
        std: Their standard deviation (over n).
        min: The least.
        max: The largest.
        counts: Sequences per bin, [256], int64; bins are half open, the last one closed.
        edges: Edges of the bins, [257], float64.
        below: Sequences below the first edge.
        above: Sequences above the last one.
    """

    sequences: int
    mean: float
    std: float
    min: float
    max: float
    counts: Tensor
    edges: Tensor
    below: int
    above: int


@dataclass(frozen=True)
class SequenceSummary:
    """The spectra of all sequences seen.

    Attributes:
        sequences: How many, whatever they hold.
        empty: Of them without a token.
        single: Of them with one token: no skewness.
        zero: Of them with tokens that are all zero: no spectrum.
        tokens: Tokens kept.
        nonfinite_tokens: Tokens left out because a value is NaN or infinite.
        metrics: By the keys of `SequenceSpectra.metrics`.
        cdf: Share of σ/σ₁ at most each edge, mean over sequences, [257]; NaN without any.
        cdf_edges: 0, 1/256, … 1, [257].
    """

    sequences: int
    empty: int
    single: int
    zero: int
    tokens: int
    nonfinite_tokens: int
    metrics: dict[str, SequenceStatistic]
    cdf: Tensor
    cdf_edges: Tensor


@dataclass(frozen=True)
class SequenceTallies:
    """Additive sums over sequences; rows are those of SEQUENCE_METRICS.

    Attributes:
        counts: [6], int64: sequences, empty, single, zero, tokens, nonfinite tokens.
        numbers: [5], int64: sequences that have the number.
        sums: [5, 2], float64: Σv and Σv².
        ranges: [5, 2], float64: min (+inf without) and max (−inf without).
        histograms: [5, 258], int64: below, bins, above.
        cdf: [257], float64: sum of the shares.
    """

    counts: Tensor
    numbers: Tensor
    sums: Tensor
    ranges: Tensor
    histograms: Tensor
    cdf: Tensor

    @classmethod
    def zeros(cls) -> SequenceTallies:
        """Of no sequences: the neutral element of `merge`."""
        kinds = len(SEQUENCE_METRICS)
        return cls(
            counts=torch.zeros(6, dtype=torch.int64),
            numbers=torch.zeros(kinds, dtype=torch.int64),
            sums=torch.zeros(kinds, 2, dtype=torch.float64),
            ranges=torch.tensor([[math.inf, -math.inf]] * kinds, dtype=torch.float64),
            histograms=torch.zeros(kinds, _BINS + 2, dtype=torch.int64),
            cdf=torch.zeros(CDF_STEPS + 1, dtype=torch.float64),
        )

    @classmethod
    def of(cls, spectra: SequenceSpectra, nonfinite_tokens: int) -> SequenceTallies:
        """Of one batch of spectra."""
        values = torch.stack([spectra.metrics[key].cpu() for key in SEQUENCE_METRICS])
        known = ~values.isnan()
        counted = torch.where(known, values, 0.0)
        # One more column, so that an empty batch has extremes too.
        ends = values.new_tensor([[math.inf, -math.inf]]).expand(len(values), 2)
        low = torch.cat([torch.where(known, values, math.inf), ends[:, :1]], dim=1).amin(dim=1)
        high = torch.cat([torch.where(known, values, -math.inf), ends[:, 1:]], dim=1).amax(dim=1)
        each = zip(values, known, SEQUENCE_METRICS, strict=True)
        return cls(
            counts=_counts(spectra, nonfinite_tokens),
            numbers=known.sum(dim=1),
            sums=torch.stack([counted.sum(dim=1), (counted**2).sum(dim=1)], dim=1),
            ranges=torch.stack([low, high], dim=1),
            histograms=torch.stack([_histogram(row[have], key) for row, have, key in each]),
            cdf=spectra.cdf.cpu().nan_to_num(0.0).sum(dim=0),
        )

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def merge(self, other: SequenceTallies) -> SequenceTallies:
        """Of both sets of sequences; neither operand changes."""
        both = {name: mine + other.tensors()[name] for name, mine in self.tensors().items()}
        low = torch.minimum(self.ranges, other.ranges)[:, 0]
        high = torch.maximum(self.ranges, other.ranges)[:, 1]
        return SequenceTallies(**both | {"ranges": torch.stack([low, high], dim=1)})

    def summary(self) -> SequenceSummary:
        """What the sums say."""
        spectra = int(self.numbers[SEQUENCE_METRICS.index("sv_median_ratio")])
        metrics = {key: self._statistic(i, key) for i, key in enumerate(SEQUENCE_METRICS)}
        edges = torch.linspace(0, 1, CDF_STEPS + 1, dtype=torch.float64)
        sequences, empty, single, zero, tokens, nonfinite_tokens = self.counts.tolist()
        return SequenceSummary(
            sequences=sequences,
            empty=empty,
            single=single,
            zero=zero,
            tokens=tokens,
            nonfinite_tokens=nonfinite_tokens,
            metrics=metrics,
            cdf=self.cdf / (spectra or math.nan),
            cdf_edges=edges,
        )

    def _statistic(self, i: int, key: str) -> SequenceStatistic:
        n = int(self.numbers[i])
        mean, square = (self.sums[i] / (n or math.nan)).tolist()
        low, high = self.ranges[i].tolist() if n else (math.nan, math.nan)
        histogram = self.histograms[i]
        return SequenceStatistic(
            sequences=n,
            mean=mean,
            std=math.sqrt(max(0.0, square - mean**2)) if n else math.nan,
            min=low,
            max=high,
            counts=histogram[1:-1].clone(),
            edges=_edges(key),
            below=int(histogram[0]),
            above=int(histogram[-1]),
        )


def _counts(spectra: SequenceSpectra, nonfinite_tokens: int) -> Tensor:
    tokens = spectra.tokens.cpu()
    zero = int((spectra.singular_values[:, :1] == 0).sum())
    empty, single = int((tokens == 0).sum()), int((tokens == 1).sum())
    return torch.tensor([len(tokens), empty, single, zero, int(tokens.sum()), nonfinite_tokens])


def _edges(key: str) -> Tensor:
    low, high = _RANGES.get(key, (0.0, 1.0))
    return torch.linspace(low, high, _BINS + 1, dtype=torch.float64)


def _histogram(values: Tensor, key: str) -> Tensor:
    edges = _edges(key)
    bins = torch.searchsorted(edges, values, right=True)
    bins[values == edges[-1]] = _BINS
    return torch.bincount(bins, minlength=_BINS + 2)
