"""Cosine statistics within and between groups of rows: tokens, sentences, positions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from aniso.moments import GroupMoments, RowMoments
from aniso.ops import group_products, row_moments_into
from aniso.ops._arrays import as_tensor, check_mask, check_rows, require_finite, restore_kind
from aniso.ops._runs import check_groups, runs_of

if TYPE_CHECKING:
    from torch import Tensor

    from aniso.ops._runs import Runs


# Keeps 0/0 out of the sums of groups that are all zero.
_TINY = 1e-300


@dataclass(frozen=True)
class GroupCosine:
    """Cosines within and between groups of rows; numbers are float64, NaN where undefined.

    n_g is the number of rows of group g with a direction, ŝ_g = Σx̂ of them. The arrays have one
    entry per group, in the order of `ids`.

    Attributes:
        within: Mean cosine over all pairs i ≠ j of one group: pairs weigh the same.
        within_mean: Mean of `per_group` over groups with n_g ≥ 2: groups weigh the same.
        between: Mean cosine over all pairs of rows from different groups.
        rows: Rows kept in a group (zero rows included).
        zero_rows: Kept rows without a direction, in no cosine.
        groups: G, the number of groups that have a kept row.
        ids: The groups' own ids, ascending, [G] int64.
        counts: n_g, [G] int64.
        per_group: (‖ŝ_g‖² − n_g)/(n_g(n_g − 1)), [G]; NaN where n_g < 2.
        intra_similarity: Mean over i of cos(x̄_g, x_i), x̄_g the mean of the group's rows, [G].
    """

    within: float
    within_mean: float
    between: float
    rows: int
    zero_rows: int
    groups: int
    ids: Any
    counts: Any
    per_group: Any
    intra_similarity: Any


def group_cosine(x: Any, groups: Any, *, mask: Any = None) -> GroupCosine:
    """Mean cosine within and between groups of rows, without a pair and without G × d sums.

    within_g = (‖ŝ_g‖² − n_g)/(n_g(n_g − 1)); between by subtraction, (‖ŝ‖² − Σ‖ŝ_g‖²)/(N² − Σn_g²);
    mean_i cos(x̄_g, x_i) = ŝ_g·Σx_g/(n_g ‖Σx_g‖). With ids of tokens, `per_group` is the
    self-similarity of every word; with ids of sentences, `intra_similarity` is theirs.

    Args:
        x: Rows, shape [n, d], float64/float32/float16/bfloat16, CPU or CUDA.
        groups: Group of every row, shape [n], int64 or int32, any values; negative: in no group,
            left out like a masked row.
        mask: Rows to keep, shape [n], bool. Default: all.

    Returns:
        GroupCosine, float64; its arrays are of the kind of x.

    Raises:
        InputError: x is not 2-D or not of a floating dtype, groups is not int64 or int32 [n], mask
            is not bool [n], or a kept row is not finite.

    Time O(n d) for one read of x (a second where a row is zero, or on a GPU), and O(n log n) where
    ids are out of order; memory O(n + d). Accumulates in float64. Equivalent to
    `reference.group_cosine`.
    Reference: Ethayarajh, "How Contextual are Contextualized Word Representations?", EMNLP 2019.

    Example:
        >>> group_cosine(torch.eye(4), torch.tensor([0, 0, 1, 1])).within
        0.0
    """
    rows, runs = _walk(x, groups, mask)
    counts, products, total = group_products(rows, runs)
    zero_rows = _zero_rows(rows, runs, counts)
    found = _cosines(runs.slot, counts, products, total, (len(runs.order), zero_rows))
    kind = restore_kind(x)
    arrays = ("ids", "counts", "per_group", "intra_similarity")
    return replace(found, **{name: kind(getattr(found, name)) for name in arrays})


def cosines_of_groups(moments: GroupMoments) -> GroupCosine:
    """`group_cosine` of all rows whose sums these are; its arrays are torch tensors.

    Time and memory O(G d).
    """
    unit, total = moments.unit_sums, moments.unit_sums.sum(0)
    means = moments.sums / moments.sums.abs().amax(dim=1, keepdim=True).clamp(min=_TINY)
    products = [(a * b).sum(1) for a, b in ((unit, unit), (unit, means), (means, means))]
    rows = int(moments.rows)
    left_out = rows - int(moments.counts.sum())
    return _cosines(moments.ids, moments.counts, torch.stack(products, 1), total, (rows, left_out))


def _cosines(
    ids: Tensor, counts: Tensor, products: Tensor, total: Tensor, rows: tuple[int, int]
) -> GroupCosine:
    """The cosines from products [G, 3]: ‖ŝ‖², ŝ·m and ‖m‖² of every group, m a multiple of Σx.

    total is Σx̂ of all; rows are those kept, and those of them without a direction.
    """
    square, aligned, mean_square = products.unbind(1)
    inner, pairs = square - counts, (counts * (counts - 1)).double()
    per_group = torch.where(counts > 1, inner / pairs, math.nan)
    n = int(counts.sum())
    return GroupCosine(
        within=_ratio(inner[counts > 1].sum(), pairs.sum()),
        within_mean=_ratio(per_group.nansum(), (counts > 1).sum()),
        between=_ratio(total @ total - square.sum(), n * n - (counts * counts).sum()),
        rows=rows[0],
        zero_rows=rows[1],
        groups=len(counts),
        ids=ids,
        counts=counts,
        per_group=per_group,
        intra_similarity=aligned / (counts * mean_square.sqrt()),
    )


def first_token_cosine(x: Any, groups: Any, *, mask: Any = None) -> float:
    """Mean over groups of the mean cosine of a group's first row with its others.

    With sentences as groups: uniformity of [CLS]. First is the first kept row, in the order of x.
    x̂_1·(ŝ_g − x̂_1) = (‖ŝ_g‖² − ‖ŝ_g − x̂_1‖² − 1)/2, so that two sums over the rows are enough.

    Args:
        x: Rows, shape [n, d], float64/float32/float16/bfloat16, CPU or CUDA.
        groups: Group of every row, shape [n], int64 or int32; negative: in no group.
        mask: Rows to keep, shape [n], bool. Default: all.

    Returns:
        The mean over groups whose first row and at least one other have a direction; NaN without.

    Raises:
        InputError: as `group_cosine`.

    Time O(n d) for two reads of x; memory O(n + d). Accumulates in float64. Equivalent to
    `reference.first_token_cosine`.
    Reference: Yan et al., "Addressing Token Uniformity in Transformers via Singular Value
    Transformation", UAI 2022 (clsUni).

    Example:
        >>> first_token_cosine(torch.ones(4, 3), torch.tensor([0, 0, 0, 0]))
        1.0
    """
    rows, runs = _walk(x, groups, mask)
    counts, products, _ = group_products(rows, runs)
    _zero_rows(rows, runs, counts)
    others = replace(runs, begin=runs.begin + 1)
    other_counts, other_products, _ = group_products(rows, others)
    valid = (other_counts > 0) & (counts > other_counts)
    cosines = (products[:, 0] - other_products[:, 0] - 1) / (2 * other_counts)
    return _ratio(cosines[valid].sum(), valid.sum())


def _walk(x: Any, groups: Any, mask: Any) -> tuple[Tensor, Runs]:
    """The rows, and the walk over those that are in a group; all checked."""
    rows = check_rows(as_tensor(x))
    return rows, runs_of(check_groups(groups, rows), check_mask(mask, rows))


def _zero_rows(rows: Tensor, runs: Runs, counts: Tensor) -> int:
    """How many rows of the walk are zero; raises InputError where one is not finite."""
    if int(counts.sum()) == len(runs.order):
        return 0
    member = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    member[runs.order] = True
    moments = RowMoments.zeros(rows.shape[1], rows.device)
    row_moments_into(rows, member, *moments.tensors())
    require_finite(rows, member, moments.nonfinite_rows)
    return moments.zero_rows


def _ratio(total: Tensor, count: Tensor | int) -> float:
    return float(total) / float(count) if float(count) > 0 else math.nan
