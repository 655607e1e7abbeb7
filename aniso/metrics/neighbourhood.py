"""What a transform keeps and what it spreads: LSDS, RBF distance, token uniformity."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError
from aniso.metrics.groups import group_cosine
from aniso.ops._arrays import as_tensor, check_mask, check_pairs, check_rows, require_finite_pairs
from aniso.ops._double import directions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

# Pairs per block: 64 MiB of float64 distances.
_BLOCK_PAIRS = 1 << 23


def token_uniformity(x: Any, sentences: Any, *, mask: Any = None) -> float:
    """TokenUni: mean over sentences of the mean cosine of all pairs of their tokens.

    Args:
        x: Tokens, shape [n, d], float64/float32/float16/bfloat16.
        sentences: Sentence of every token, shape [n], int64 or int32; negative: in none.
        mask: Tokens to keep, shape [n], bool. Default: all.

    Returns:
        The mean over sentences of two tokens or more; NaN without.

    Raises:
        InputError: as `group_cosine`.

    Time O(n d). Equivalent to `group_cosine(x, sentences).within_mean`; that of [CLS] is
    `first_token_cosine`.
    Reference: Yan et al., "Addressing Token Uniformity in Transformers via Singular Value
    Transformation", UAI 2022 (TokenUni).

    Example:
        >>> token_uniformity(torch.eye(3), torch.tensor([0, 0, 0]))
        0.0
    """
    return group_cosine(x, sentences, mask=mask).within_mean


def rbf_distance(x: Any, *, t: float = 0.5, mask: Any = None) -> float:
    """RBFdis: log mean exp(−‖x̂_i − x̂_j‖²/t) over all pairs i ≠ j of rows, exactly.

    With t = 0.5 the uniformity of Wang & Isola (their 2), which `uniformity` estimates from a
    sample. By Jensen it is at least −(2/t)(1 − mean cosine).

    Args:
        x: Rows, shape [n, d], float64/float32/float16/bfloat16, finite. Zero rows have no
            direction and are left out.
        t: Width of the kernel, > 0.
        mask: Rows to keep, shape [n], bool. Default: all.

    Returns:
        The logarithm; NaN with fewer than two rows that have a direction.

    Raises:
        InputError: x is not 2-D or not finite, mask is not bool [n], or t ≤ 0.

    Time O(n² d) in float64, by blocks: memory O(n d).
    Reference: Yan et al., "Addressing Token Uniformity in Transformers via Singular Value
    Transformation", UAI 2022 (RBFdis); Wang & Isola, "Understanding Contrastive Representation
    Learning through Alignment and Uniformity on the Hypersphere", ICML 2020.

    Example:
        >>> round(rbf_distance(torch.eye(3)), 6)  # ‖x̂_i − x̂_j‖² = 2
        -4.0
    """
    _check_width(t)
    rows = check_rows(as_tensor(x))
    require_finite_pairs(rows, rows, keep := check_mask(mask, rows), ("x", "x"))
    kept = (rows if keep is None else rows[keep]).double()
    units = directions(kept[(kept != 0).any(dim=1)])
    n = len(units)
    if n < 2:
        return math.nan
    total = sum(float(_kernel_sum(units, block, t)) for block in _blocks(n))
    return math.log(total / (n * (n - 1)))


def _kernel_sum(units: Tensor, block: slice, t: float) -> Tensor:
    """Σ exp(−2(1 − c)/t) over the pairs of the block's rows with all others."""
    kernel = torch.exp((units[block] @ units.T - 1) * (2 / t))
    kernel.diagonal(offset=block.start).zero_()
    return kernel.sum()


def lsds(x: Any, y: Any, *, neighbours: int = 12, t: float = 0.5, mask: Any = None) -> float:
    """Local structure distortion of a transform x → y: how far rows move from their neighbours.

    mean_i ‖y_i − Σ_j w_ij y_j‖ over the nearest neighbours j ≠ i of x_i, w_ij =
    exp(−‖x_i − x_j‖²/t): equation 6 of the paper, the weights as they are, without a norm to 1.
    (The authors' code computes another quantity: barycentric weights of locally linear embedding,
    the row among its own neighbours, a Frobenius total.) With t = 0.5 the weights of rows further
    apart than 3 vanish in effect: scale the rows for a weight that tells.

    Args:
        x: Rows before the transform, shape [n, d], float64/float32/float16/bfloat16, finite.
        y: The same rows after it, shape [n, e].
        neighbours: How many; rows with fewer others have those. Of rows equally far any counts.
        t: Width of the weights, > 0.
        mask: Rows to keep, shape [n], bool. Default: all.

    Returns:
        The mean; NaN without rows.

    Raises:
        InputError: x and y are not rows [n, ·] of one length or not finite, mask is not bool [n],
            or neighbours or t is not positive.

    Time O(n² d) in float64, by blocks: memory O(n (d + e)). Equivalent to `reference.lsds`.
    Reference: Yan et al., "Addressing Token Uniformity in Transformers via Singular Value
    Transformation", UAI 2022 (LSDS).

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> round(lsds(x, x, t=1.0), 4)  # (‖0 − e⁻¹·1‖ + ‖1 − e⁻¹·0‖)/2
        0.6839
    """
    _check_width(t)
    if neighbours < 1:
        raise InputError(f"neighbours is {neighbours}; take 1 or more")
    before, after = check_pairs(x, y)
    keep = check_mask(mask, before)
    require_finite_pairs(before, after, keep)
    if keep is not None:
        before, after = before[keep], after[keep]
    before, after = before.double(), after.double()
    n = len(before)
    if n == 0:
        return math.nan
    k = min(neighbours, n - 1)
    total = sum(float(_distortion(before, after, block, k, t)) for block in _blocks(n))
    return total / n


def _distortion(x: Tensor, y: Tensor, block: slice, k: int, t: float) -> Tensor:
    """Σ_i ‖y_i − Σ_j w_ij y_j‖ over the rows of a block."""
    # Differences, not a product: near neighbours far from the origin keep their distance.
    distance = torch.cdist(x[block], x, compute_mode="donot_use_mm_for_euclid_dist")
    distance.diagonal(offset=block.start).fill_(math.inf)
    near, index = distance.topk(k, dim=1, largest=False)
    weights = torch.exp(-(near**2) / t)
    moved = torch.zeros_like(y[block])
    for weight, j in zip(weights.T, index.T, strict=True):
        moved += weight[:, None] * y[j]
    lengths: Tensor = torch.linalg.vector_norm(y[block] - moved, dim=1)
    return lengths.sum()


def _blocks(n: int) -> Iterator[slice]:
    rows = max(1, _BLOCK_PAIRS // n)
    return (slice(i, min(n, i + rows)) for i in range(0, n, rows))


def _check_width(t: float) -> None:
    if not t > 0:
        raise InputError(f"t is {t}; the width of the kernel is positive")
