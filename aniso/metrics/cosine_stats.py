"""Cosine statistics of rows in memory, with or without their rogue dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from aniso.errors import InputError
from aniso.metrics.cosine import contributions, mean_cosine, var_cosine, var_cosine_of_few
from aniso.metrics.drift import drift_norm, mean_norm, relative_drift
from aniso.metrics.rogue import check_dimensions, rogue_dimensions
from aniso.moments import RowMoments
from aniso.ops import gram_into, row_moments_into
from aniso.ops._arrays import as_tensor, check_mask, check_rows, require_finite, restore_kind
from aniso.ops._double import directions, finite_rows
from aniso.ops.gram import pilot_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

# 16 MiB of float64 per block of rows whose dimensions are set to zero, as in the Gram product.
_BLOCK_ELEMENTS = 1 << 21
# Up to d/2 rows the products of pairs of rows are quicker than those of pairs of columns (measured
# on a CPU for d of 768 and 4096).
_FEW = 2


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
        without: The dimensions left out.
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
    without: tuple[int, ...] = ()


def cosine_stats(
    x: Any,
    *,
    mask: Any = None,
    nonfinite: Literal["raise", "skip"] = "raise",
    without: int | Iterable[int] | None = None,
) -> CosineStats:
    """Mean and variance of the cosine over all pairs of rows, without the N² pairs.

    mean = (‖Σx̂‖² − N)/(N(N − 1)); the variance from the centred second moment of x̂, by an
    identity free of cancellation.

    Args:
        x: Rows, shape [n, d], float64/float32/float16/bfloat16, CPU or CUDA.
        mask: Rows to keep, shape [n], bool. Default: all.
        nonfinite: What to do with rows that hold NaN or infinite values: "raise", or "skip" to
            leave them out and count them.
        without: Dimensions to leave out before rows are brought to norm 1: a number k means the
            k that contribute most to the mean cosine, found in a read of their own. Rows that are
            not finite in any dimension stay out.

    Returns:
        CosineStats, float64; `contributions` is an array of the kind of x.

    Raises:
        InputError: x is not 2-D or not of a floating dtype, mask is not bool [n], a row is not
            finite and nonfinite="raise", or `without` names no dimension of x or leaves none.

    Time O(n d min(n, d)), memory O(d²), or O(n d) where n is at most d/2. Accumulates in float64.
    Equivalent to `reference.cosine_mean_var`.
    Reference: Godey et al., "Is Anisotropy Inherent to Transformers?", 2023.

    Example:
        >>> cosine_stats(torch.eye(4)).mean
        0.0
    """
    if nonfinite not in ("raise", "skip"):
        raise InputError(f"nonfinite is {nonfinite!r}; use 'raise' or 'skip'")
    rows = check_rows(as_tensor(x))
    kept = check_mask(mask, rows)
    left_out = _left_out(without, rows, kept)
    moments = RowMoments.zeros(rows.shape[1], rows.device)
    for block, keep in _blocks(rows, kept, left_out):
        row_moments_into(block, keep, *moments.tensors())
    if nonfinite == "raise":
        require_finite(rows, kept, moments.nonfinite_rows)
    if _FEW * moments.directions <= rows.shape[1]:
        var = _var_of_few(rows, kept, left_out, moments)
    else:
        var = _var_of_many(rows, kept, left_out, moments)
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
        without=tuple(left_out),
    )


def _var_of_many(
    rows: Tensor, kept: Tensor | None, left_out: Sequence[int], moments: RowMoments
) -> float:
    dim = rows.shape[1]
    zeros = partial(rows.new_zeros, dtype=torch.float64)
    unit, totals, noise = zeros(dim, dim), zeros(2, dim), zeros(2)
    blocks = partial(_blocks, rows, kept, left_out)
    # Of the first block that has rows with a direction.
    pilots = (pilot_of(block, keep) for block, keep in blocks())
    pilot = next((pilot for pilot in pilots if pilot[1].any()), zeros(2, dim))
    for block, keep in blocks():
        gram_into(block, keep, pilot, None, unit, totals, noise)
    return var_cosine(moments.directions, unit, totals[1], pilot[1])


def _var_of_few(
    rows: Tensor, kept: Tensor | None, left_out: Sequence[int], moments: RowMoments
) -> float:
    n = moments.directions
    few = rows if kept is None else rows[kept]
    few = (few if len(few) == n else few[finite_rows(few)]).to(torch.float64, copy=True)
    few[:, list(left_out)] = 0
    units = directions(few)
    if len(units) > n:
        units = units[torch.linalg.vector_norm(units, dim=1) > 0]
    return var_cosine_of_few(units)


def _left_out(
    without: int | Iterable[int] | None, rows: Tensor, kept: Tensor | None
) -> Sequence[int]:
    if without is None:
        return ()
    if not isinstance(without, int | np.integer):
        return check_dimensions(without, rows.shape[1])
    k, dim = int(without), rows.shape[1]
    if not 1 <= k < dim:
        raise InputError(f"without is {k}, of {dim} dimensions; leave out 1 to {dim - 1}")
    moments = RowMoments.zeros(dim, rows.device)
    row_moments_into(rows, kept, *moments.tensors())
    return rogue_dimensions(moments, k).dims


def _blocks(
    rows: Tensor, kept: Tensor | None, left_out: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The rows with the dimensions at zero, block by block; the rows themselves without any."""
    if not left_out:
        yield rows, kept
        return
    # Times 0, so that NaN and infinities stay what they are.
    factor = rows.new_ones(rows.shape[1])
    factor[list(left_out)] = 0
    step = max(1, _BLOCK_ELEMENTS // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        keep = None if kept is None else kept[start : start + step]
        yield rows[start : start + step] * factor, keep
