"""Second moments of rows, G = Σxxᵀ and Ĝ = Σx̂x̂ᵀ, accumulated in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aniso import _native
from aniso.errors import InputError
from aniso.moments import Grams
from aniso.ops._arrays import (
    as_tensor,
    check_mask,
    check_rows,
    require_finite,
    restore_kind,
    unit_columns,
)
from aniso.ops._double import directions, finite_rows
from aniso.ops.backend import Backend, register_chooser
from aniso.ops.row_moments import row_moments

# 16 MiB of float64 per block: large enough for the matrix product to run at its full rate, small
# enough to stay in the last-level cache (estimated for d up to 8192).
_BLOCK_ELEMENTS = 1 << 21
_PILOT_ROWS = 1024


torch.library.define(
    "aniso::gram",
    "(Tensor x, Tensor? mask, Tensor pilot, Tensor(a!)? raw, Tensor(b!)? unit, Tensor(c!) totals, "
    "Tensor(d!) noise) -> ()",
)
gram_into = torch.ops.aniso.gram.default
"""Adds the second moments of rows x [n, d] about a pilot to the accumulators of `Grams`.

None for `raw` or `unit` leaves that one out, with its half of `totals` and `noise`.
"""


@torch.library.impl("aniso::gram", "CompositeExplicitAutograd")
def _gram(
    x: Tensor,
    mask: Tensor | None,
    pilot: Tensor,
    raw: Tensor | None,
    unit: Tensor | None,
    totals: Tensor,
    noise: Tensor,
) -> None:
    backend = _choose(x)
    if backend.name.startswith("cpu-"):
        threads, isa = torch.get_num_threads(), backend.name.removeprefix("cpu-")
        sums = (raw, unit, totals, noise)
        x, mask = _compacted(x, mask)
        _native.gram_cpu(unit_columns(x), mask, pilot, *sums, threads=threads, isa=isa)
    else:
        _add_blocks(x, mask, pilot, (raw, unit), totals)


@torch.library.register_fake("aniso::gram")  # type: ignore[untyped-decorator]
def _gram_fake(
    x: Tensor,
    mask: Tensor | None,
    pilot: Tensor,
    raw: Tensor | None,
    unit: Tensor | None,
    totals: Tensor,
    noise: Tensor,
) -> None:
    torch._check(x.ndim == 2, lambda: "rows are [n, d]")


def _compacted(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The kept rows alone where many are masked: the kernels multiply masked rows as zeros."""
    if mask is None or int(mask.sum()) > 15 * len(x) // 16:
        return x, mask
    return x[mask], None


def _add_blocks(
    x: Tensor,
    mask: Tensor | None,
    pilot: Tensor,
    grams: tuple[Tensor | None, Tensor | None],
    totals: Tensor,
) -> None:
    step = max(1, _BLOCK_ELEMENTS // x.shape[1])
    for start in range(0, x.shape[0], step):
        kept = None if mask is None else mask[start : start + step]
        rows = x[start : start + step].to(torch.float64)
        keep = finite_rows(rows, kept)[:, None]
        # Rows that do not count are set to zero: they add nothing.
        rows = torch.where(keep, rows, 0.0)
        for which, gram in enumerate(grams):
            if gram is None:
                continue
            counted = keep & (rows != 0).any(dim=1, keepdim=True) if which else keep
            about = torch.where(counted, (directions(rows) if which else rows) - pilot[which], 0.0)
            gram.addmm_(about.T, about)
            totals[which] += about.sum(0)


def pilot_of(x: Tensor, mask: Tensor | None) -> Tensor:
    """A pilot for rows like those of x: the means of the first of x and of x̂, [2, d] float64.

    The mean of half-precision rows is rounded to their dtype: differences from it are then as short
    numbers as they are, and fixed point holds them exactly.
    """
    first = x[:_PILOT_ROWS]
    moments = row_moments(first, mask=None if mask is None else mask[:_PILOT_ROWS])
    rows, zero = moments.counts[:2]
    counts = torch.stack([rows, rows - zero]).clamp(min=1)[:, None]
    pilot: Tensor = (moments.sums[:2] / counts).float().double()
    if x.dtype in (torch.float16, torch.bfloat16):
        pilot[0] = pilot[0].to(x.dtype).nan_to_num(0.0, 0.0, 0.0)
    return pilot


def gram(x: Any, *, normalize: bool = False, center: bool = False, mask: Any = None) -> Any:
    """Second-moment matrix of the rows, Σxxᵀ, in float64.

    G = Σ y yᵀ with y = x, or y = x/‖x‖ when `normalize` (zero rows left out); `center` subtracts
    the mean of y first: Σ(y − ȳ)(y − ȳ)ᵀ.

    Args:
        x: Rows, shape [n, d], float64/float32/float16/bfloat16, CPU or CUDA. Read once.
        normalize: Use the directions of the rows.
        center: Subtract the mean row.
        mask: Rows to keep, shape [n], bool. Default: all.

    Returns:
        [d, d], float64, an array of the kind of x.

    Raises:
        InputError: x is not 2-D or not of a floating dtype, a kept row is not finite, or mask is
            not bool [n].

    Time O(n d²), memory O(d²). Equivalent to `reference.gram`. On a CPU with a matrix unit (AMX),
    rows of float32 are taken to 39 bits of each column's largest value in a block of rows (G to
    some 1e-12/√n of its norm), rows of float16 to 23 bits, and their products added exactly. Rows
    of bfloat16 are multiplied as they are, by numbers of 16 bits when `normalize`, and a block of
    products added in float32: G to some 1e-5/√n, or like float16 where rows hardly vary.

    Example:
        >>> gram(torch.eye(2))
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    rows = check_rows(as_tensor(x))
    kept = check_mask(mask, rows)
    moments = row_moments(rows, mask=kept)
    require_finite(rows, kept, moments.nonfinite_rows)
    sums = Grams.zeros(rows.shape[1], rows.device)
    if center:
        sums.pilot.copy_(pilot_of(rows, kept))
    pilot, raw, unit, totals, noise = sums.tensors()
    out = unit if normalize else raw
    gram_into(rows, kept, pilot, *((None, unit) if normalize else (raw, None)), totals, noise)
    count = moments.directions if normalize else moments.rows
    if center and count:
        total = totals[int(normalize)]
        out -= torch.outer(total, total) / count
    return restore_kind(x)(out)


def _choose(x: Tensor) -> Backend:
    if x.device.type not in ("cpu", "cuda"):
        raise InputError(f"x lies on {x.device}; move it to a CPU or a CUDA device")
    if x.device.type == "cpu" and _native.has_amx and x.dtype != torch.float64:
        return Backend("cpu-amx", "products of digits, or of bfloat16 rows, on the matrix unit")
    if x.device.type == "cpu":
        return Backend(f"cpu-{_native.isa}", "float64 products of columns, a triangle of them")
    return Backend("torch", "matrix products of float64 blocks")


register_chooser("gram", _choose)
