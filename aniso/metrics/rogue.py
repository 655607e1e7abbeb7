"""Rogue dimensions: the few that make most of the mean cosine, and rows without them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError
from aniso.metrics.cosine import contributions, mean_cosine
from aniso.metrics.spectrum import singular_values

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from aniso.moments import Grams, RowMoments


@dataclass(frozen=True)
class RogueDimensions:
    """The dimensions that add most to the mean cosine.

    Attributes:
        dims: Their indices, the largest contribution first.
        contributions: What each adds to the mean cosine.
    """

    dims: tuple[int, ...]
    contributions: tuple[float, ...]


def rogue_dimensions(moments: RowMoments, k: int) -> RogueDimensions:
    """The k dimensions of largest contribution to the mean cosine.

    Args:
        moments: State S1.
        k: How many, from 1 to d.

    Raises:
        InputError: k is not in 1..d.

    Reference: Timkey & van Schijndel, "All Bark and No Bite", EMNLP 2021.

    Example:
        >>> rogue_dimensions(row_moments(torch.tensor([[9.0, 1.0], [8.0, -1.0]])), 1).dims
        (0,)
    """
    shares = contributions(moments)
    if not 1 <= k <= len(shares):
        raise InputError(f"k is {k}, of {len(shares)} dimensions; pass 1 to {len(shares)}")
    values, dims = shares.sort(descending=True, stable=True)
    return RogueDimensions(tuple(dims[:k].tolist()), tuple(values[:k].tolist()))


def rogue_share(moments: RowMoments, k: int) -> float:
    """Sum of the k largest contributions over the mean cosine; NaN where that is not positive.

    Above 1 where other dimensions are negative: then the k alone would give more.
    """
    total = mean_cosine(moments)
    if not total > 0:
        return math.nan
    return sum(rogue_dimensions(moments, min(k, len(moments.unit_sum))).contributions) / total


@dataclass(frozen=True)
class WithoutDimensions:
    """What sums alone say about rows without some dimensions.

    y_i is x̂_i without the dimensions, not brought back to norm 1: `partial_*` are statistics of
    y_i·y_j and no cosines of the reduced rows; those need the rows (`cosine_stats(without=…)`).

    Attributes:
        dims: The dimensions left out.
        partial_mean: Mean of y_i·y_j over i ≠ j.
        partial_var_low: Bounds of its variance over i ≠ j, at most 1/(4(N − 1)) apart; None
            without the Gram of the directions.
        partial_var_high: The upper bound.
        kept_energy: Mean ‖y_i‖²; near 1 the partial values are nearly cosines.
        singular_values: σ of the rows without the dimensions, uncentred, descending; None without
            the raw Gram.
    """

    dims: tuple[int, ...]
    partial_mean: float
    partial_var_low: float | None
    partial_var_high: float | None
    kept_energy: float
    singular_values: Any


def without_dimensions(
    moments: RowMoments, grams: Grams | None, dims: Iterable[int]
) -> WithoutDimensions:
    """What the sums of a layer say about its rows without some dimensions, in no further pass.

    With ŝ, Ĝ, G cut down to the kept dimensions and a = tr Ĝ/N: the partial mean is
    (‖ŝ‖² − Na)/(N(N − 1)), the singular values are those of G. The variance over i ≠ j is, as in
    `var_cosine`, [N²(Var_all + (m − mean)²) − Σ(‖y_i‖² − mean)²]/(N(N − 1)) with
    m − mean = (a − m)/(N − 1); Σ‖y_i‖⁴ is in no state, but lies between Na² and Na.

    Args:
        moments: State S1.
        grams: State S2, or None.
        dims: Dimensions to leave out.

    Raises:
        InputError: a dimension outside 0..d − 1, or none left.

    Time O(d³), O(d) without Grams.
    """
    left_out = check_dimensions(dims, len(moments.unit_sum))
    kept = torch.ones(len(moments.unit_sum), dtype=torch.bool, device=moments.unit_sum.device)
    kept[left_out] = False
    n = moments.directions
    # Of all energy, not of n: as exact where little is left as where little is left out, though
    # Σx̂_k² of float32 rows is not exact to float64.
    squares = moments.unit_square_sum
    energy = float(squares[kept].sum() / squares.sum()) if n else math.nan
    mean = float(contributions(moments)[kept].sum())
    bounds = sigma = None
    if grams is not None:
        counts = (moments.rows, moments.directions)
        grams = grams.about(torch.zeros_like(grams.pilot), counts)
        unit_gram = grams.unit[kept][:, kept]
        bounds = _partial_var(grams.totals[1][kept], unit_gram, n, energy, mean)
        sigma = singular_values(grams.raw[kept][:, kept], moments.rows).cpu().numpy()
    return WithoutDimensions(
        dims=tuple(left_out),
        partial_mean=mean,
        partial_var_low=None if bounds is None else bounds[0],
        partial_var_high=None if bounds is None else bounds[1],
        kept_energy=energy,
        singular_values=sigma,
    )


def _partial_var(
    unit_sum: Tensor, unit_gram: Tensor, n: int, energy: float, mean: float
) -> tuple[float, float]:
    if n < 2:
        return math.nan, math.nan
    mu = unit_sum / n
    spread = unit_gram / n - torch.outer(mu, mu)
    var_all = float(2 * (mu @ spread @ mu) + (spread**2).sum())
    gap = (energy - float(mu @ mu)) / (n - 1)
    squares = n * n * (var_all + gap**2)
    least = n * (energy - mean) ** 2
    most = least + n * max(0.0, energy * (1 - energy))
    pairs = n * (n - 1)
    return max(0.0, squares - most) / pairs, max(0.0, squares - least) / pairs


def check_dimensions(dims: Iterable[int], dim: int) -> list[int]:
    """The dimensions as a sorted list without repeats.

    Raises:
        InputError: one outside 0..dim − 1, or none left.
    """
    try:
        found = sorted({index(k) for k in dims})
    except TypeError as error:
        raise InputError(f"dimensions are {dims!r}; pass integers from 0 to {dim - 1}") from error
    if found and not 0 <= found[0] <= found[-1] < dim:
        wrong = found[0] if found[0] < 0 else found[-1]
        raise InputError(f"there is no dimension {wrong}; rows have dimensions 0 to {dim - 1}")
    if len(found) == dim:
        raise InputError(f"all {dim} dimensions are left out; keep at least one")
    return found
