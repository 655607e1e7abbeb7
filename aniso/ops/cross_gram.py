"""Second moments of paired rows, C = Σxyᵀ and Ĉ = Σx̂ŷᵀ, accumulated in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aniso.errors import InputError
from aniso.ops._arrays import check_mask, check_pairs, require_finite_pairs, restore_kind
from aniso.ops._double import directions, finite_rows
from aniso.ops.backend import Backend, register_chooser

if TYPE_CHECKING:
    from collections.abc import Iterator

# 16 MiB of float64 per block of both sources: see gram.
_BLOCK_ELEMENTS = 1 << 21

torch.library.define(
    "aniso::cross_gram",
    "(Tensor x, Tensor y, Tensor? mask, Tensor(a!)? raw, Tensor(b!)? unit) -> ()",
)
cross_gram_into = torch.ops.aniso.cross_gram.default
"""Adds Σxyᵀ to `raw` and Σx̂ŷᵀ to `unit` ([dx, dy] float64; None leaves one out)."""


@torch.library.impl("aniso::cross_gram", "CompositeExplicitAutograd")
def _cross_gram(
    x: Tensor, y: Tensor, mask: Tensor | None, raw: Tensor | None, unit: Tensor | None
) -> None:
    for rows_x, rows_y in _blocks(x, y, mask):
        if raw is not None:
            raw.addmm_(rows_x.T, rows_y)
        if unit is not None:
            unit.addmm_(directions(rows_x).T, directions(rows_y))


def _blocks(x: Tensor, y: Tensor, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Both sources in float64; where either row does not count, both are zero and add nothing."""
    step = max(1, _BLOCK_ELEMENTS // (x.shape[1] + y.shape[1]))
    for start in range(0, x.shape[0], step):
        block = slice(start, start + step)
        rows_x, rows_y = x[block].to(torch.float64), y[block].to(torch.float64)
        keep = finite_rows(rows_x, None if mask is None else mask[block])
        keep = finite_rows(rows_y, keep)[:, None]
        yield torch.where(keep, rows_x, 0.0), torch.where(keep, rows_y, 0.0)


@torch.library.register_fake("aniso::cross_gram")  # type: ignore[untyped-decorator]
def _cross_gram_fake(
    x: Tensor, y: Tensor, mask: Tensor | None, raw: Tensor | None, unit: Tensor | None
) -> None:
    torch._check(x.ndim == 2 and y.ndim == 2, lambda: "rows are [n, d]")
    torch._check(x.shape[0] == y.shape[0], lambda: "paired rows are equally many")


def cross_gram(x: Any, y: Any, *, normalize: bool = False, mask: Any = None) -> Any:
    """Second-moment matrix of paired rows, Σxyᵀ, in float64.

    C = Σ_i x_i y_iᵀ, or Ĉ = Σ_i x̂_i ŷ_iᵀ over the pairs of which neither row is zero when
    `normalize`.

    Args:
        x: Rows of the first source, shape [n, dx], float64/float32/float16/bfloat16, CPU or CUDA.
        y: Rows of the second, shape [n, dy]; row i belongs to row i of x.
        normalize: Use the directions of the rows.
        mask: Pairs to keep, shape [n], bool. Default: all.

    Returns:
        [dx, dy], float64, an array of the kind of x.

    Raises:
        InputError: x or y is not 2-D or not of a floating dtype, they differ in rows or device, a
            kept row is not finite, or mask is not bool [n].

    Time O(n dx dy), memory O(dx dy). On every device torch multiplies float64 blocks (on a GPU by
    cuBLAS, on its float64 tensor cores where it has them). Equivalent to `reference.cross_gram`.

    Example:
        >>> cross_gram(torch.eye(2), torch.eye(2)[:, :1])
        tensor([[1.],
                [0.]], dtype=torch.float64)
    """
    rows_x, rows_y = check_pairs(x, y)
    kept = check_mask(mask, rows_x)
    require_finite_pairs(rows_x, rows_y, kept)
    out = rows_x.new_zeros((rows_x.shape[1], rows_y.shape[1]), dtype=torch.float64)
    cross_gram_into(rows_x, rows_y, kept, *((None, out) if normalize else (out, None)))
    return restore_kind(x)(out)


def _choose(x: Tensor) -> Backend:
    if x.device.type not in ("cpu", "cuda"):
        raise InputError(f"x lies on {x.device}; move it to a CPU or a CUDA device")
    return Backend("torch", "matrix products of float64 blocks")


register_chooser("cross_gram", _choose)
