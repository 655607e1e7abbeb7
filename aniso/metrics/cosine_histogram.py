"""The distribution of the cosine over all pairs of rows: histogram, extremes, quantiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError
from aniso.metrics.pair_design import PairDesign
from aniso.metrics.pair_sample import quantile_interval
from aniso.ops import pair_histogram_into, row_moments
from aniso.ops._arrays import as_tensor, check_mask, check_rows, require_finite, restore_kind
from aniso.ops.pair_histogram import MAX_BINS

if TYPE_CHECKING:
    from torch import Tensor

# Cosines of the kernels are hardly closer to their float64 values: narrower bins tell nothing.
_RESOLUTION = 1e-6


@dataclass(frozen=True)
class CosineHistogram:
    """Cosines of pairs of rows, counted into bins of equal width over [−1, 1].

    A cosine is within 2e-6 of its float64 value (typically 1e-7), so only pairs that close to an
    edge may lie in the next bin.

    Attributes:
        counts: Pairs per bin, [bins], int64; bins are half open, the last one closed.
        edges: Edges of the bins, [bins + 1], float64.
        min: Least cosine, NaN without pairs.
        max: Largest cosine, NaN without pairs.
        pairs: Pairs counted.
        exact: Whether they are all pairs; else the pairs of a uniform sample of rows.
        rows: Rows with a direction.
        sampled_rows: Rows whose pairs were counted.
        zero_rows: Rows without a direction, in no pair.
        confidence: Probability of an `interval` to cover, when sampled.
    """

    counts: Any
    edges: Any
    min: float
    max: float
    pairs: int
    exact: bool
    rows: int
    sampled_rows: int
    zero_rows: int
    confidence: float

    def quantile(self, q: float) -> float:
        """The q-quantile of the counted cosines, interpolated within its bin; NaN without pairs.

        Raises:
            InputError: q outside [0, 1].
        """
        if not 0 <= q <= 1:
            raise InputError(f"q is {q}; a quantile lies in [0, 1]")
        if self.pairs == 0:
            return math.nan
        counts, edges = torch.as_tensor(self.counts), torch.as_tensor(self.edges)
        cumulated = counts.cumsum(0).double()
        k = min(int(torch.searchsorted(cumulated, q * self.pairs)), len(counts) - 1)
        share = (q * self.pairs - float(cumulated[k] - counts[k])) / max(1, int(counts[k]))
        value = float(edges[k]) + share * float(edges[k + 1] - edges[k])
        return min(max(value, self.min), self.max)

    def interval(self, q: float) -> tuple[float, float]:
        """Where the q-quantile over all pairs lies: its bin, or with `confidence` when sampled.

        Reference for samples: see `metrics.pair_sample.quantile_interval`.

        Raises:
            InputError: q outside [0, 1], or no pairs.
        """
        design = PairDesign(self.sampled_rows, population=self.rows)
        counts, edges = torch.as_tensor(self.counts).numpy(), torch.as_tensor(self.edges).numpy()
        low, high = quantile_interval(counts, edges, q, design, confidence=self.confidence)
        return float(low), float(high)


def cosine_histogram(
    x: Any,
    *,
    other: Any = None,
    mask: Any = None,
    bins: int = 2048,
    max_pairs: int | None = None,
    seed: int = 0,
    confidence: float = 0.99,
) -> CosineHistogram:
    """Histogram, minimum and maximum of the cosine over all pairs of rows, without the N² matrix.

    All pairs i < j of the rows of x, or all pairs of a row of x and a row of `other`.

    Args:
        x: Rows, shape [n, d], float64/float32/float16/bfloat16, CPU or CUDA; zero rows
            are left out.
        other: Rows of a second source, shape [m, d].
        mask: Rows of x to keep, shape [n], bool. Default: all.
        bins: Bins over [−1, 1], at most 65,536.
        max_pairs: When there are more pairs, count those of a uniform sample of rows without
            replacement, as many rows as make at most this many pairs.
        seed: Chooses the sample.
        confidence: Of intervals from a sample.

    Returns:
        CosineHistogram; arrays of the kind of x.

    Raises:
        InputError: not rows of a floating dtype, a kept row that is not finite, bins or max_pairs
            out of range, another width of `other`, or `other` together with max_pairs.

    Time O(n² d) for all pairs, memory O(bins) and a block of rows. Equivalent to a histogram of
    `reference.pair_cosines`.

    Example:
        >>> cosine_histogram(torch.eye(4), bins=4).counts
        tensor([0, 0, 6, 0])
    """
    if not 1 <= bins <= MAX_BINS:
        raise InputError(f"bins is {bins}; use 1 to {MAX_BINS:,}")
    rows, zero_rows = _rows_with_direction(x, mask, "x")
    partners = None
    if other is not None:
        if max_pairs is not None:
            raise InputError("max_pairs samples the pairs of one source; leave it out with other")
        partners = _rows_with_direction(other, None, "other")[0].to(rows.device)
        if partners.shape[1] != rows.shape[1]:
            raise InputError(f"other has {partners.shape[1]} columns, x has {rows.shape[1]}")
    sample = _sample(rows, max_pairs, seed)
    counts, extremes = _count(sample, partners, -1.0, 1.0, bins)
    pairs = int(counts.sum())
    return CosineHistogram(
        counts=restore_kind(x)(counts[1:-1].clone()),
        edges=restore_kind(x)(torch.linspace(-1, 1, bins + 1, dtype=torch.float64)),
        min=float(extremes[0]) if pairs else math.nan,
        max=float(extremes[1]) if pairs else math.nan,
        pairs=pairs,
        exact=len(sample) == len(rows),
        rows=len(rows),
        sampled_rows=len(sample),
        zero_rows=zero_rows,
        confidence=confidence,
    )


def cosine_quantile(x: Any, q: float, *, mask: Any = None, tolerance: float = 1e-6) -> float:
    """The q-quantile of the cosine over all pairs i < j of rows, to `tolerance`, of all pairs.

    The least cosine c for which at least a share q of the pairs is at most c. Each pass over the
    pairs counts them into 65,536 bins over what the last one left.

    Args:
        x: Rows, shape [n, d], float64/float32/float16/bfloat16, CPU or CUDA.
        q: Which quantile, in [0, 1].
        mask: Rows to keep, shape [n], bool. Default: all.
        tolerance: Width of the last bin, at least 1e-6. The cosines counted are within 2e-6 of
            their float64 values, typically 1e-7, which adds to it.

    Returns:
        The middle of that bin; NaN below two rows with a direction.

    Raises:
        InputError: not rows of a floating dtype, a kept row that is not finite, q outside [0, 1]
            or tolerance below 1e-6.

    Time O(n² d), two passes at most, memory O(bins). Equivalent to a quantile of
    `reference.pair_cosines`.

    Example:
        >>> abs(cosine_quantile(torch.eye(4), 0.5)) < 1e-6
        True
    """
    if not 0 <= q <= 1:
        raise InputError(f"q is {q}; a quantile lies in [0, 1]")
    if tolerance < _RESOLUTION:
        raise InputError(f"tolerance is {tolerance}; use {_RESOLUTION} or more")
    rows = _rows_with_direction(x, mask, "x")[0]
    if len(rows) < 2:
        return math.nan
    rank = max(1, math.ceil(q * (len(rows) * (len(rows) - 1) // 2)))
    low, high = -1.0, 1.0
    while high - low > tolerance:
        counts, extremes = _count(rows, None, low, high, MAX_BINS)
        width = (high - low) / MAX_BINS
        k = int(torch.searchsorted(counts.cumsum(0), rank))
        low, high = low + (k - 1) * width, low + k * width
        low, high = max(low, float(extremes[0])), min(high, float(extremes[1]))
    return (low + high) / 2


def _rows_with_direction(x: Any, mask: Any, name: str) -> tuple[Tensor, int]:
    rows = check_rows(as_tensor(x, name), name)
    kept = check_mask(mask, rows)
    moments = row_moments(rows, mask=kept)
    require_finite(rows, kept, moments.nonfinite_rows, name)
    if moments.zero_rows or moments.masked_rows:
        usable = (rows != 0).any(dim=1)
        rows = rows[usable if kept is None else usable & kept]
    return rows, moments.zero_rows


def _sample(rows: Tensor, max_pairs: int | None, seed: int) -> Tensor:
    if max_pairs is None or len(rows) * (len(rows) - 1) // 2 <= max_pairs:
        return rows
    if max_pairs < 1:
        raise InputError(f"max_pairs is {max_pairs}; count at least one pair")
    size = (1 + math.isqrt(1 + 8 * max_pairs)) // 2
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(rows), generator=generator)[:size].sort().values
    return rows[chosen.to(rows.device)]


def _count(
    rows: Tensor, partners: Tensor | None, low: float, high: float, bins: int
) -> tuple[Tensor, Tensor]:
    counts = torch.zeros(bins + 2, dtype=torch.int64, device=rows.device)
    extremes = torch.tensor([torch.inf, -torch.inf], dtype=torch.float64, device=rows.device)
    pair_histogram_into(rows, partners, low, high, counts, extremes)
    return counts, extremes
