"""Cosine statistics over all pairs i ≠ j of rows, from sums alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from aniso.errors import InputError
from aniso.metrics.drift import drift_norm, mean_norm, relative_drift
from aniso.moments import RowMoments
from aniso.ops import gram_into, row_moments_into
from aniso.ops._arrays import as_tensor, check_mask, check_rows, require_finite, restore_kind

if TYPE_CHECKING:
    from torch import Tensor


def mean_cosine(moments: RowMoments) -> float:
    """(‖Σx̂‖² − N)/(N(N − 1)); NaN below two directions. Ethayarajh 2019; Godey et al. 2023."""
    n = moments.directions
    if n < 2:
        return math.nan
    return (float(moments.unit_sum @ moments.unit_sum) - n) / (n * (n - 1))


def var_cosine(directions: int, unit_total: Tensor, unit_gram: Tensor) -> float:
    """Variance over i ≠ j by the identity whose terms are all non-negative; NaN below two.

    With μ = Σx̂/N, S = Ĝ/N − μμᵀ, m = ‖μ‖²: over all ordered pairs Var_all = 2μᵀSμ + ‖S‖_F²;
    then the N pairs (i, i) are taken out. Nothing cancels, at any mean cosine.
    """
    n = directions
    if n < 2:
        return math.nan
    mu = unit_total / n
    spread = unit_gram / n - torch.outer(mu, mu)
    var_all = float(2 * (mu @ spread @ mu) + (spread**2).sum())
    m = float(mu @ mu)
    gap = (1 - m) / (n - 1)
    pairs = n * n * (var_all + gap**2) - n * (1 - (m - gap)) ** 2
    return max(0.0, pairs / (n * (n - 1)))


def contributions(moments: RowMoments) -> Tensor:
    """Share of every dimension in the mean cosine, [d]: (ŝ_k² − Σx̂_k²)/(N(N − 1))."""
    n = moments.directions
    if n < 2:
        return torch.full_like(moments.unit_sum, math.nan)
    shares: Tensor = (moments.unit_sum**2 - moments.unit_square_sum) / (n * (n - 1))
    return shares


@dataclass(frozen=True)
class CosineStats:
    """Cosine statistics over all pairs of rows; numbers are float64, NaN where undefined.

    Attributes:
        rows: Rows kept (zero rows included).
        zero_rows: Kept rows without a direction, in no cosine.
        nonfinite_rows: Rows left out as non-finite.
        mask_rows: Rows left out by the mask.
        mean: Mean cosine over i ≠ j.
        var: Variance of the cosine over i ≠ j.
        std: Its square root.
        drift_norm: ‖Σx‖/N.
        mean_norm: Σ‖x‖/N.
        relative_drift: drift_norm/mean_norm.
        contributions: Share of each dimension in `mean`, [d]; they add up to it.
    """

    rows: int
    zero_rows: int
    nonfinite_rows: int
    mask_rows: int
    mean: float
    var: float
    std: float
    drift_norm: float
    mean_norm: float
    relative_drift: float
    contributions: Any


def cosine_stats(
    x: Any, *, mask: Any = None, nonfinite: Literal["raise", "skip"] = "raise"
) -> CosineStats:
    """Mean and variance of the cosine over all pairs of rows, without the N² pairs.

    mean = (‖Σx̂‖² − N)/(N(N − 1)); the variance from the centred second moment of x̂, by an
    identity free of cancellation.

    Args:
        x: Rows, shape [n, d], float64/float32/float16/bfloat16, CPU or CUDA.
        mask: Rows to keep, shape [n], bool. Default: all.
        nonfinite: What to do with rows that hold NaN or infinite values: "raise", or "skip" to
            leave them out and count them.

    Returns:
        CosineStats, float64; `contributions` is an array of the kind of x.

    Raises:
        InputError: x is not 2-D or not of a floating dtype, mask is not bool [n], or a row is not
            finite and nonfinite="raise".

    Time O(n d²), memory O(d²). Accumulates in float64. Equivalent to `reference.cosine_mean_var`.
    Reference: Godey et al., "Is Anisotropy Inherent to Transformers?", 2023.

    Example:
        >>> cosine_stats(torch.eye(4)).mean
        0.0
    """
    if nonfinite not in ("raise", "skip"):
        raise InputError(f"nonfinite is {nonfinite!r}; use 'raise' or 'skip'")
    rows = check_rows(as_tensor(x))
    kept = check_mask(mask, rows)
    moments = RowMoments.zeros(rows.shape[1], rows.device)
    row_moments_into(rows, kept, *moments.tensors())
    if nonfinite == "raise":
        require_finite(rows, kept, moments.nonfinite_rows)
    dim = rows.shape[1]
    unit_gram = rows.new_zeros((dim, dim), dtype=torch.float64)
    totals = unit_gram.new_zeros(2, dim)
    gram_into(rows, kept, None, unit_gram, totals, unit_gram.new_zeros(2))
    var = var_cosine(moments.directions, totals[1], unit_gram)
    return CosineStats(
        rows=moments.rows,
        zero_rows=moments.zero_rows,
        nonfinite_rows=moments.nonfinite_rows,
        mask_rows=moments.masked_rows,
        mean=mean_cosine(moments),
        var=var,
        std=math.sqrt(var),
        drift_norm=drift_norm(moments),
        mean_norm=mean_norm(moments),
        relative_drift=relative_drift(moments),
        contributions=restore_kind(x)(contributions(moments)),
    )
