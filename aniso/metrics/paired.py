"""How alike two sources are, from the sums over their paired rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from aniso.metrics.cosine import var_cosine
from aniso.metrics.hsic import debiased_cka
from aniso.metrics.layer import layer_metrics
from aniso.moments import Grams

if TYPE_CHECKING:
    from torch import Tensor

    from aniso.metrics.layer import LayerMetrics
    from aniso.metrics.paired_sums import PairedSums
    from aniso.moments import RowMoments

# The second moments of directions are rounded to some ε: a smaller variance is no variance.
_ROUNDING = 64 * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Comparison:
    """Two sources side by side; a number is NaN where it is undefined for these rows.

    Attributes:
        rows: Pairs of rows compared; None when the rows are not paired.
        rsa_pearson: Pearson correlation of cos(x_i, x_j) and cos(y_i, y_j) over all pairs i < j of
            rows that have a direction in both; None when the rows are not paired.
        debiased_cka: Debiased linear CKA; None when the rows are not paired.
        metrics_a: The numbers of the first source.
        metrics_b: The numbers of the second.
        delta: b − a of every metric that both have.
    """

    rows: int | None
    rsa_pearson: float | None
    debiased_cka: float | None
    metrics_a: LayerMetrics
    metrics_b: LayerMetrics
    delta: dict[str, float]


def compare_sums(sums: PairedSums) -> Comparison:
    """Everything that the sums over paired rows say about the two sources. Time O(dx³ + dy³)."""
    x, y = sums.moments_x, sums.moments_y
    raw = sums.about(torch.zeros_like(sums.origin_x), torch.zeros_like(sums.origin_y))
    a = layer_metrics(x, _grams(x, raw.xx.cross, sums.unit_xx))
    b = layer_metrics(y, _grams(y, raw.yy.cross, sums.unit_yy))
    return Comparison(
        rows=sums.rows,
        rsa_pearson=rsa_pearson(x, y, sums.unit_xx, sums.unit_yy, sums.unit_xy),
        debiased_cka=debiased_cka(sums.xx, sums.xy, sums.yy),
        metrics_a=a,
        metrics_b=b,
        delta=delta(a, b),
    )


def _grams(moments: RowMoments, raw: Tensor, unit: Tensor) -> Grams:
    origin = torch.zeros_like(moments.sums[:2])
    return Grams(origin, raw, unit, moments.sums[:2], raw.new_zeros(2))


def compare_metrics(a: LayerMetrics, b: LayerMetrics) -> Comparison:
    """The comparison of two sources whose rows are not paired: Δ of the metrics alone."""
    return Comparison(None, None, None, a, b, delta(a, b))


def delta(a: LayerMetrics, b: LayerMetrics) -> dict[str, float]:
    """Change of every metric that both have: b − a."""
    return {key: b.metrics[key] - value for key, value in a.metrics.items() if key in b.metrics}


def cov_cosine(x: RowMoments, y: RowMoments, unit_cross: Tensor) -> float:
    """Covariance of cos(x_i, x_j) and cos(y_i, y_j) over i ≠ j; NaN below two directions.

    The identity of `var_cosine` for two sources: with μ = Σx̂/N, ν = Σŷ/N, S = Ĉ/N − μνᵀ, over all
    ordered pairs Cov_all = 2μᵀSν + ‖S‖_F². The N pairs (i, i), where both cosines are 1, taken
    out: N/(N − 1) · [Cov_all − (1 − ‖μ‖²)(1 − ‖ν‖²)/(N − 1)].

    Args:
        x: Moments of the first source over the rows that have a direction in both.
        y: Moments of the second over the same rows.
        unit_cross: Ĉ = Σx̂ŷᵀ, [dx, dy] float64.
    """
    n = x.directions
    if n < 2:
        return math.nan
    mu, nu = x.unit_sum / n, y.unit_sum / n
    spread = unit_cross / n - torch.outer(mu, nu)
    cov_all = float(2 * (mu @ spread @ nu) + (spread**2).sum())
    diagonal = (1 - float(mu @ mu)) * (1 - float(nu @ nu)) / (n - 1)
    return n / (n - 1) * (cov_all - diagonal)


def rsa_pearson(
    x: RowMoments, y: RowMoments, unit_gram_x: Tensor, unit_gram_y: Tensor, unit_cross: Tensor
) -> float:
    """Pearson correlation of the cosines of two sources over all pairs i < j, without the N² pairs.

    NaN below three directions, and where the cosines of a source do not vary by more than rounding
    (standard deviation below 1.2e-7).

    Args:
        x: Moments of the first source over the rows that have a direction in both.
        y: Moments of the second over the same rows.
        unit_gram_x: Σx̂x̂ᵀ of those rows, [dx, dx] float64.
        unit_gram_y: Σŷŷᵀ, [dy, dy] float64.
        unit_cross: Σx̂ŷᵀ, [dx, dy] float64.

    With δ = 1 − mean cosine the relative error is some 1e-15 d/δ² (measured: 1e-9 at δ = 0.002),
    for the variance sought is some δ²/d, and the second moments are rounded to ε.

    Time O(dx² + dy² + dx dy). Equivalent to `reference.rsa_pearson`.
    Reference: Kriegeskorte et al., "Representational similarity analysis", 2008.
    """
    var_x = _var_cosine(x, unit_gram_x)
    var_y = _var_cosine(y, unit_gram_y)
    if x.directions < 3 or not min(var_x, var_y) > _ROUNDING:
        return math.nan
    correlation = cov_cosine(x, y, unit_cross) / math.sqrt(var_x) / math.sqrt(var_y)
    return max(-1.0, min(1.0, correlation))


def _var_cosine(x: RowMoments, unit_gram: Tensor) -> float:
    return var_cosine(x.directions, unit_gram, x.unit_sum, torch.zeros_like(x.unit_sum))
