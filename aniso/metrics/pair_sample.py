"""Confidence intervals for all pairs of rows, from the pairs of a sample of rows or documents.

Every bound is proved for every population and sample size: see `PairDesign` for the lemma they
share. They are honest rather than tight: a sample of m units counts as ⌊m/2⌋ pairs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aniso.errors import InputError
from aniso.ops._arrays import as_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from aniso.metrics.pair_design import PairDesign

    Array = np.ndarray[Any, np.dtype[np.float64]]

# Bins are found by sums of shares: their rounding must not move an interval inwards.
_ROUNDING = 1e-12
_HALVINGS = 60


class Interval(NamedTuple):
    """An interval that covers the population's value with the confidence asked for."""

    low: float
    high: float


class DistributionBand(NamedTuple):
    """A band around the distribution function of all pairs, at every bin edge, [bins + 1]."""

    low: Any
    value: Any
    high: Any


def mean_interval(
    mean: float,
    var: float,
    design: PairDesign,
    *,
    low: float = -1.0,
    high: float = 1.0,
    confidence: float = 0.99,
) -> Interval:
    """Interval for the mean of h(x_i, x_j) over all pairs i ≠ j, h in [low, high].

    The overlap of two intervals, each at half the risk δ = 1 − confidence:
    Chernoff's, k·KL(θ + (mean − θ)/stretch ‖ θ) ≤ ln(4/δ) with h scaled to [0, 1] (Hoeffding 1963,
    Theorem 1, for U-statistics by §5); and an empirical Bernstein bound. There, with L = ln(6/δ),
    r = √(2Lρ/k)/(1 − 1/N) and h in a range of width w, Bernstein's inequality for h gives
    |mean − θ| ≤ rσ + w r²/6, and for the lower tail of (h − θ)² ≥ 0, whose second moment is at
    most w²σ², σ² ≤ var + (mean − θ)² + w r σ; the largest solution is found by iteration. To
    second order it is √(2L/k)·std + (7/3)wL/k, as Maurer & Pontil 2009 have it for means.

    Args:
        mean: Mean of h over the sampled pairs (weighted as `design.shares` when documents).
        var: Variance of h over the sampled pairs, their mean square deviation from `mean`.
        design: How the rows were drawn.
        low: Least value that h can take.
        high: Largest value that h can take.
        confidence: Probability to cover the mean of the population, at least.

    Returns:
        Interval; the mean itself when every unit was sampled.

    Raises:
        InputError: mean outside [low, high], negative variance, or confidence outside (0, 1).

    Reference: Hoeffding 1963; Peel, Anthoine, Ralaivola, "Empirical Bernstein Inequalities for
    U-Statistics", NeurIPS 2010 (the order-2 variance above needs no quadruples of rows).

    Example:
        >>> from aniso.metrics import PairDesign
        >>> interval = mean_interval(0.1, 0.01, PairDesign(4096, population=10**9))
        >>> [round(end, 3) for end in interval]
        [0.081, 0.119]
    """
    delta, width = _risk(confidence), high - low
    if not low <= mean <= high or not var >= 0:
        raise InputError(f"mean {mean}, variance {var}: no values in [{low}, {high}] have these")
    if design.exact or not width:
        return Interval(mean, mean)
    bottom, top = _chernoff_means((mean - low) / width, math.log(4 / delta), design)
    radius = _bernstein_radius(var, width, math.log(6 / delta), design)
    return Interval(
        max(low, low + width * bottom, mean - radius), min(high, low + width * top, mean + radius)
    )


def distribution_band(
    counts: Any, design: PairDesign, *, within: Any = None, confidence: float = 0.99
) -> DistributionBand:
    """Band that covers the distribution function F of all pairs' cosines everywhere at once.

    Z = (1 − 1/N)·sup|F_m − F| is a convex function of the sampled pairs, so by the lemma of
    `PairDesign` E φ(Z) ≤ E φ(D_k) for convex increasing φ, D_k the Kolmogorov distance of k
    independent draws, P(D_k > x) ≤ 2e^(−2kx²) (Massart 1990). With φ = (x − s)₊ Markov gives
    P(Z ≥ t) ≤ E(D_k − s)₊/(t − s) ≤ √(π/2k) erfc(s√(2k))/(t − s). The best s makes this 2e^(−u²),
    u = s√(2k), at t√(2k) = u + (√π/2) e^(u²) erfc(u). So with u = √ln(2/δ) the half-width is
    stretch·(u + √π erfc(u)/δ)/√(2k): the mean of Massart's tail beyond its δ-quantile.
    (Documents: their pairs' masses are filled up with F to κ, which leaves F the mean.)

    Args:
        counts: Sampled pairs i < j per bin, [bins].
        design: How the rows were drawn.
        within: Those of them within one document, [bins], when documents were sampled.
        confidence: Probability to cover F at every point, at least.

    Returns:
        DistributionBand of P(cosine < edge), and of 1 at the last edge, [bins + 1]; the three
        agree when every unit was sampled.

    Raises:
        InputError: no pairs, or confidence outside (0, 1).

    Reference: Massart, "The Tight Constant in the Dvoretzky-Kiefer-Wolfowitz Inequality", 1990.

    Example:
        >>> from aniso.metrics import PairDesign
        >>> band = distribution_band(np.array([30, 15]), PairDesign(10, population=10))
        >>> band.value.round(2).tolist()
        [0.0, 0.67, 1.0]
    """
    radius = _band_radius(design, _risk(confidence))
    value = np.concatenate([[0.0], np.cumsum(design.shares(counts, within))]).clip(max=1.0)
    low, high = (value - radius).clip(min=0.0), (value + radius).clip(max=1.0)
    low[-1], high[0] = 1.0, 0.0  # every pair lies between the outer edges
    return DistributionBand(low, value, high)


def quantile_interval(
    counts: Any,
    edges: Any,
    q: float,
    design: PairDesign,
    *,
    within: Any = None,
    confidence: float = 0.99,
    simultaneous: bool = False,
) -> Interval:
    """Interval for the q-quantile of the cosines of all pairs, from a histogram of sampled pairs.

    F at the quantile t is at least q, and below q just left of it. So by Chernoff's bound for the
    indicator of cosines ≤ t (as in `mean_interval`) F_m(t) ≥ y₋ and F_m(t−) ≤ y₊, where
    y = q + stretch·(x − q) and x solves k·KL(x ‖ q) = ln(2/δ): t lies between the quantiles of
    F_m at y₋ and y₊, widened to whole bins. With `simultaneous`, y = q ∓ the half-width of
    `distribution_band`: then the intervals for all q hold together.

    Args:
        counts: Sampled pairs i < j per bin, [bins].
        edges: Edges of the bins, [bins + 1], increasing; no cosine lies outside them.
        q: Which quantile, in [0, 1].
        design: How the rows were drawn.
        within: Those of the pairs within one document, [bins], when documents were sampled.
        confidence: Probability to cover the population's quantile, at least.
        simultaneous: Cover the quantiles of all q at once.

    Returns:
        Interval; the edges of the quantile's bin when every unit was sampled.

    Raises:
        InputError: no pairs, q outside [0, 1], edges that do not fit, or confidence outside (0, 1).

    Example:
        >>> from aniso.metrics import PairDesign
        >>> edges = np.linspace(-1, 1, 5)
        >>> quantile_interval(np.array([1, 2, 4, 3]), edges, 0.5, PairDesign(5, population=5))
        Interval(low=0.0, high=0.5)
    """
    delta = _risk(confidence)
    if not 0 <= q <= 1:
        raise InputError(f"q is {q}; a quantile is asked for with 0 ≤ q ≤ 1")
    cumulated = np.cumsum(design.shares(counts, within))
    borders = check_edges(edges, len(cumulated))
    if design.exact:
        place = max(0.0, q - _ROUNDING)
        found = _bin(cumulated, place, "left" if place else "right")
        return Interval(float(borders[found]), float(borders[found + 1]))
    if simultaneous:
        radius = _band_radius(design, delta)
        below, above = q - radius, q + radius
    else:
        below, above = _chernoff_shares(q, math.log(2 / delta), design)
    first = _bin(cumulated, below - _ROUNDING, "left")
    last = _bin(cumulated, above + _ROUNDING, "right")
    return Interval(
        float(borders[first if below > _ROUNDING else 0]),
        float(borders[last + 1 if above < 1 else -1]),
    )


def within_counts(rows: Any, documents: Any, edges: Any) -> Array:
    """Histogram of the cosines of pairs i < j of one document, [bins].

    Args:
        rows: Sampled rows, [n, d].
        documents: The document of each row, [n], in any numbering.
        edges: Edges of the bins, [bins + 1]; cosines beyond them by rounding go to the last bins.

    Time O(Σ s² d) over documents of s rows, in float64.
    """
    x = as_tensor(rows).cpu().double()
    x = x / x.norm(dim=1, keepdim=True)
    borders = check_edges(edges, len(edges) - 1)
    counts = np.zeros(len(borders) - 1)
    labels = as_tensor(documents, "documents").cpu()
    order = labels.argsort(stable=True)
    for members in order.split(labels.unique(return_counts=True)[1].tolist()):
        units = x[members].numpy()
        cosines = (units @ units.T)[np.triu_indices(len(units), 1)]
        counts += np.histogram(cosines.clip(borders[0], borders[-1]), borders)[0]
    return counts


def check_edges(edges: Any, bins: int) -> Array:
    """The edges as float64 [bins + 1].

    Raises:
        InputError: another shape, or edges that do not increase.
    """
    borders: Array = as_tensor(edges, "edges").cpu().double().numpy()
    if borders.shape != (bins + 1,) or not (np.diff(borders) > 0).all():
        raise InputError(
            f"edges has shape {list(borders.shape)} for {bins} bins; pass {bins + 1} increasing "
            "edges"
        )
    return borders


def _risk(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}; pass a probability such as 0.99")
    return 1 - confidence


def _band_radius(design: PairDesign, delta: float) -> float:
    if design.exact:
        return 0.0
    if not design.blocks:
        return 1.0
    u = math.sqrt(math.log(2 / delta))
    beyond = u + math.sqrt(math.pi) * math.erfc(u) / delta
    return design.stretch * beyond / math.sqrt(2 * design.blocks)


def _bin(cumulated: Array, share: float, side: str) -> int:
    found = np.searchsorted(cumulated, share, "left" if side == "left" else "right")
    return min(int(found), len(cumulated) - 1)


def _bernstein_radius(var: float, width: float, log_risk: float, design: PairDesign) -> float:
    """Largest |mean − θ| that the two inequalities of `mean_interval` allow."""
    if not design.blocks:
        return width
    r = math.sqrt(2 * log_risk * design.unevenness / design.blocks) / design.shrink
    half, radius = width * r / 2, width
    for _ in range(_HALVINGS):
        sigma = half + math.sqrt(half**2 + var + radius**2)
        radius = min(radius, r * sigma + width * r**2 / 6)
    return radius


def _chernoff_means(mean: float, log_risk: float, design: PairDesign) -> tuple[float, float]:
    """Least and largest θ with k·KL(θ + (mean − θ)/stretch ‖ θ) ≤ log_risk."""

    def fits(theta: float) -> bool:
        seen = theta + (mean - theta) / design.stretch
        return design.blocks * _kl(seen, theta) <= log_risk

    return _last(fits, mean, 0.0), _last(fits, mean, 1.0)


def _chernoff_shares(q: float, log_risk: float, design: PairDesign) -> tuple[float, float]:
    """Least and largest F_m(t) to be expected where F(t) = q."""

    def fits(x: float) -> bool:
        return design.blocks * _kl(x, q) <= log_risk

    below, above = _last(fits, q, 0.0), _last(fits, q, 1.0)
    return q + design.stretch * (below - q), q + design.stretch * (above - q)


def _last(fits: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where `fits` ends on the way from inside to outside, rounded outwards."""
    if fits(outside):
        return outside
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if fits(middle):
            inside = middle
        else:
            outside = middle
    return outside


def _kl(x: float, p: float) -> float:
    """KL divergence of Bernoulli(x) from Bernoulli(p); large, not infinite, where impossible."""
    tiny = 1e-300
    gain = x * math.log(x / max(p, tiny)) if x > 0 else 0.0
    return gain + ((1 - x) * math.log((1 - x) / max(1 - p, tiny)) if x < 1 else 0.0)
