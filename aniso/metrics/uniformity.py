"""Uniformity of the directions (Wang & Isola 2020, t = 2), sampled or bounded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aniso.errors import InputError
from aniso.metrics.pair_sample import Interval, check_edges, mean_interval

if TYPE_CHECKING:
    from aniso.metrics.pair_design import PairDesign

    Array = np.ndarray[Any, np.dtype[np.float64]]

_SCALE = 4.0  # 2‖x̂_i − x̂_j‖² = 4(1 − c)


class Uniformity(NamedTuple):
    """log mean exp(−2‖x̂_i − x̂_j‖²) over i ≠ j: the estimate and the interval around it."""

    value: float
    low: float
    high: float


def uniformity(
    counts: Any,
    edges: Any,
    design: PairDesign,
    *,
    within: Any = None,
    known: Interval | None = None,
    confidence: float = 0.99,
) -> Uniformity:
    """Uniformity from a histogram of the cosines of sampled pairs.

    log mean h(c), h(c) = e^(−4(1 − c)) in [e^(−8), 1]. The estimate takes the middle of every bin;
    the interval is `mean_interval`'s, from the lower edges below and the upper edges above.

    Args:
        counts: Sampled pairs i < j per bin, [bins].
        edges: Edges of the bins, [bins + 1], increasing; no cosine lies outside them.
        design: How the rows were drawn.
        within: Those of the pairs within one document, [bins], when documents were sampled.
        known: Bounds that hold for certain (`uniformity_bounds`), to narrow both ends.
        confidence: Probability to cover the population's value, at least.

    Returns:
        Uniformity; its interval is that of the bins' widths when every unit was sampled.

    Raises:
        InputError: no pairs, edges that do not fit, or confidence outside (0, 1).

    Reference: Wang & Isola, "Understanding Contrastive Representation Learning through Alignment
    and Uniformity on the Hypersphere", ICML 2020.

    Example:
        >>> from aniso.metrics import PairDesign
        >>> edges = np.array([-0.001, 0.001])  # orthogonal rows
        >>> round(uniformity(np.array([6]), edges, PairDesign(4, population=4)).value, 3)
        -4.0
    """
    shares = design.shares(counts, within)
    borders = check_edges(edges, len(shares)).clip(-1.0, 1.0)
    below, above = _kernel(borders[:-1]), _kernel(borders[1:])
    middle = _kernel((borders[:-1] + borders[1:]) / 2)
    mean = float(shares @ middle)
    # Spread within bins adds to the deviation at most its own root mean square.
    gap = np.maximum(above - middle, middle - below)
    deviation = math.sqrt(shares @ (middle - mean) ** 2) + math.sqrt(shares @ gap**2)
    ends = [
        mean_interval(
            float(np.clip(shares @ h, math.exp(-2 * _SCALE), 1.0)),
            deviation**2,
            design,
            low=math.exp(-2 * _SCALE),
            high=1.0,
            confidence=confidence,
        )
        for h in (below, above)
    ]
    low, high = math.log(ends[0].low), math.log(ends[1].high)
    if known is not None:
        low, high = max(low, known.low), min(high, known.high)
    return Uniformity(min(high, max(low, math.log(mean))), low, high)


def uniformity_bounds(mean: float, var: float) -> Interval:
    """Bounds of the uniformity that hold for certain, from the exact mean and variance alone.

    f(c) = e^(−4(1 − c)) has f''' > 0. A parabola that touches f at y and meets it at 1 lies above
    f on [−1, 1]; one that meets it at −1 and touches lies below. Their means depend on mean and
    variance only, and are those of two-point distributions with that mean and variance, which
    attain them: {mean − var/(1 − mean), 1} above, {−1, mean + var/(mean + 1)} below. With
    var = 0 both are Jensen's −4(1 − mean).

    Args:
        mean: Mean cosine over i ≠ j.
        var: Variance of the cosine over i ≠ j.

    Returns:
        Interval that holds `uniformity` of every set of rows with that mean and variance.

    Raises:
        InputError: no cosines have this mean and variance.

    Reference: Krein & Nudelman, "The Markov Moment Problem and Extremal Problems", 1977.

    Example:
        >>> [round(end, 3) for end in uniformity_bounds(0.9, 0.01)]
        [-0.382, -0.322]
    """
    most = (1 - mean) * (1 + mean)  # Bhatia & Davis 2000
    slack = 1e-9 * max(var, 1e-6)
    if not -1 - slack <= mean <= 1 + slack or not 0 <= var <= most + slack:
        raise InputError(f"no cosines have mean {mean} and variance {var}; pass those of one layer")
    mean, var = min(1.0, max(-1.0, mean)), max(0.0, min(var, most))
    return Interval(_two_points(mean, var, -1.0), _two_points(mean, var, 1.0))


def _kernel(cosine: Array) -> Array:
    return np.exp(-_SCALE * (1 - cosine))


def _two_points(mean: float, var: float, end: float) -> float:
    """Log of the mean of f over {end, other}, the distribution with this mean and variance."""
    distance = abs(end - mean)
    if not var or not distance:
        return -_SCALE * (1 - mean)
    at_end = var / (var + distance**2)
    other = mean + math.copysign(var / distance, mean - end)
    logs = np.log([at_end, 1 - at_end]) - _SCALE * (1 - np.array([end, other]))
    return float(np.logaddexp(*logs))
