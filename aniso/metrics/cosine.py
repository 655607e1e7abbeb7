"""Cosine statistics over all pairs i ≠ j of rows, from sums alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from aniso.moments import RowMoments


def mean_cosine(moments: RowMoments) -> float:
    """(‖Σx̂‖² − N)/(N(N − 1)); NaN below two directions. Ethayarajh 2019; Godey et al. 2023."""
    n = moments.directions
    if n < 2:
        return math.nan
    return (float(moments.unit_sum @ moments.unit_sum) - n) / (n * (n - 1))


def var_cosine(directions: int, gram: Tensor, total: Tensor, pilot: Tensor) -> float:
    """Variance over i ≠ j by the identity whose terms are all non-negative; NaN below two.

    With μ the mean and S the covariance of the directions, m = ‖μ‖²: over all ordered pairs
    Var_all = 2μᵀSμ + ‖S‖_F²; then the N pairs (i, i) are taken out. Nothing cancels, at any mean
    cosine: S comes from moments about a pilot, and 1 − m = tr S.

    Args:
        directions: N.
        gram: Σ(x̂ − p)(x̂ − p)ᵀ, [d, d] float64.
        total: Σ(x̂ − p), [d].
        pilot: p, [d].
    """
    n = directions
    if n < 2:
        return math.nan
    step = total / n
    mu, spread = pilot + step, torch.addr(gram, step, step, alpha=-n).div_(n)
    var_all = float(2 * (mu @ spread @ mu) + torch.linalg.vector_norm(spread) ** 2)
    rest = float(spread.trace())
    gap = rest / (n - 1)
    pairs = n * n * (var_all + gap**2) - n * (rest + gap) ** 2
    return max(0.0, pairs / (n * (n - 1)))


def var_cosine_of_few(directions: Tensor) -> float:
    """The same from all cosines of N directions x̂ [N, d], float64: less work where N < d.

    Of cosines about ‖μ‖², the products yᵢᵀyⱼ + yᵢᵀμ + μᵀyⱼ with y = x̂ − μ: they are as small as the
    cosines' spread, and lose nothing where all cosines are alike.
    """
    n = len(directions)
    if n < 2:
        return math.nan
    mu = directions.mean(0)
    about = directions - mu
    along = about @ mu
    cosines = torch.addmm(along + along[:, None], about, about.T)
    mean = cosines.fill_diagonal_(0.0).sum() / (n * (n - 1))
    squares = torch.linalg.vector_norm(cosines.sub_(mean).fill_diagonal_(0.0)) ** 2
    return float(squares) / (n * (n - 1))


def contributions(moments: RowMoments) -> Tensor:
    """Share of every dimension in the mean cosine, [d]: (ŝ_k² − Σx̂_k²)/(N(N − 1))."""
    n = moments.directions
    if n < 2:
        return torch.full_like(moments.unit_sum, math.nan)
    shares: Tensor = (moments.unit_sum**2 - moments.unit_square_sum) / (n * (n - 1))
    return shares
