"""Second moments of rows, G = Σxxᵀ and Ĝ = Σx̂x̂ᵀ, accumulated in float64."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aniso import _native
from aniso.moments import RowMoments
from aniso.ops._arrays import (
    as_tensor,
    check_mask,
    check_rows,
    require_finite,
    restore_kind,
    unit_columns,
)
from aniso.ops._double import directions, finite_rows, inverse_norms
from aniso.ops.backend import Backend, device_of, product_backend, register_chooser
from aniso.ops.row_moments import row_moments, row_moments_into

if TYPE_CHECKING:
    from collections.abc import Callable

# 16 MiB of float64 per block: large enough for the matrix product to run at its full rate, small
# enough to stay in the last-level cache (estimated for d up to 8192).
_BLOCK_ELEMENTS = 1 << 21
_PILOT_ROWS = 1024
# On a GPU 512 MiB: a kernel's programs then have some hundred rows each (estimated).
_GPU_BLOCK_ELEMENTS = 1 << 26
# Sums of products in float32 on tensor cores are truncated by less than this, relative to the sum
# of magnitudes; with the rounding of the factors (see triton_kernels/gram.py).
_TRUNCATION = 1e-6

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
    sums = (raw, unit, totals, noise)
    if backend.name.startswith("cpu-"):
        threads, isa = torch.get_num_threads(), backend.name.removeprefix("cpu-")
        x, mask = _compacted(x, mask)
        _native.gram_cpu(unit_columns(x), mask, pilot, *sums, threads=threads, isa=isa)
    elif backend.name == "triton":
        with device_of(x):
            _add_tiles(unit_columns(x), mask, pilot, (raw, unit), totals, noise)
    else:
        _add_blocks(x, mask, pilot, (raw, unit), totals, _add_product)


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


def _add_product(about: Tensor, which: int, gram: Tensor) -> None:
    gram.addmm_(about.T, about)


def _add_blocks(
    x: Tensor,
    mask: Tensor | None,
    pilot: Tensor,
    grams: tuple[Tensor | None, Tensor | None],
    totals: Tensor,
    add: Callable[[Tensor, int, Tensor], None],
    elements: int | None = None,
) -> None:
    """Writes out the rows about the pilot in float64, a block at a time; `add` multiplies them."""
    step = max(1, (elements or _BLOCK_ELEMENTS) // x.shape[1])
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
            add(about, which, gram)
            totals[which] += about.sum(0)


def _add_tiles(
    x: Tensor,
    mask: Tensor | None,
    pilot: Tensor,
    grams: tuple[Tensor | None, Tensor | None],
    totals: Tensor,
    noise: Tensor,
) -> None:
    """The Triton kernels: float64 rows on float64 tensor cores, rows of 16 bits in float32."""
    from aniso.triton_kernels.gram import gram as triton_gram

    half = x.element_size() == 2

    def add(about: Tensor, which: int, gram: Tensor) -> None:
        triton_gram(about.float() if half else about, None, gram)
        if half:
            noise[which] += _noise_of(about.square().sum(), x.shape[1])

    if half and not bool(pilot.any()):
        _add_halves(x, mask, grams, totals, noise)
    else:
        _add_blocks(x, mask, pilot, grams, totals, add, _GPU_BLOCK_ELEMENTS)


def _noise_of(squares: Tensor, d: int) -> Tensor:
    """‖Δ‖_F² that stands for truncated sums of products of rows Y with ‖Y‖_F² = `squares`.

    ‖E‖_F ≤ _TRUNCATION · ‖Y‖_F² is at most 2 σ₁ ‖Δ‖_F for any σ₁² ≥ ‖Y‖_F²/d.
    """
    return squares * (d * (_TRUNCATION / 2) ** 2)


def _add_halves(
    x: Tensor,
    mask: Tensor | None,
    grams: tuple[Tensor | None, Tensor | None],
    totals: Tensor,
    noise: Tensor,
) -> None:
    """Rows of 16 bits about the origin: multiplied as they are, weights applied by the kernel."""
    from aniso.triton_kernels.gram import gram as triton_gram

    d = x.shape[1]
    moments = RowMoments.zeros(d, x.device)
    row_moments_into(x, mask, *moments.tensors())
    keep = finite_rows(x, mask) if moments.nonfinite_rows else mask
    raw, unit = grams
    if raw is not None:
        rows = x if keep is None or bool(keep.all()) else x[keep]
        triton_gram(rows, None, raw, any_range=not _products_in_range(moments.abs_max))
        totals[0] += moments.sum
        noise[0] += _noise_of(moments.norm_sums[1], d)
    if unit is not None:
        triton_gram(x, inverse_norms(x, keep), unit)
        totals[1] += moments.unit_sum
        noise[1] += _noise_of(moments.counts[0] - moments.counts[1], d)


def _products_in_range(abs_max: Tensor) -> bool:
    """Whether float32 holds products of numbers that large, to 2⁻⁴⁶ of each column's largest."""
    outside = (abs_max > 2.0**55) | ((abs_max < 2.0**-40) & (abs_max > 0))
    return not bool(outside.any())


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

    Time O(n d²), memory O(d²), besides some 20 MB of scratch on a CPU with a matrix unit (AMX); up
    to 320 MiB are kept for the next call. Equivalent to `reference.gram`. With that unit, rows of
    float32 are taken to 39 bits of each column's largest value in a block of rows (G to some
    3e-10/√n of its norm, or 1e-10 where columns take but a few values), rows of float16 to 23 bits,
    and their products added exactly. Rows of bfloat16 are multiplied as they are, by numbers of 16
    bits when `normalize` (by less where norms are alike), rounded up or down at random, and a block
    of products added in float32: G to some 1e-4/√n, or like float16 where rows hardly vary. On a
    GPU with Triton, products of float16 and bfloat16 rows are added in float32, up to 512 of them:
    G to 1e-6 of the sum of magnitudes; wider rows are multiplied in float64.

    Example:
        >>> gram(torch.eye(2))
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    rows = check_rows(as_tensor(x))
    kept = check_mask(mask, rows)
    moments = row_moments(rows, mask=kept)
    require_finite(rows, kept, moments.nonfinite_rows)
    dim, zeros = rows.shape[1], partial(rows.new_zeros, dtype=torch.float64)
    out, totals, noise = zeros(dim, dim), zeros(2, dim), zeros(2)
    pilot = pilot_of(rows, kept) if center else torch.zeros_like(totals)
    gram_into(rows, kept, pilot, *((None, out) if normalize else (out, None)), totals, noise)
    count = moments.directions if normalize else moments.rows
    if center and count:
        total = totals[int(normalize)]
        out -= torch.outer(total, total) / count
    return restore_kind(x)(out)


def _choose(x: Tensor) -> Backend:
    if x.device.type != "cpu":
        return _choose_products(x)
    if _native.has_amx and x.dtype != torch.float64:
        return Backend("cpu-amx", "products of digits, or of bfloat16 rows, on the matrix unit")
    return Backend(f"cpu-{_native.isa}", "float64 products of columns, a triangle of them")


def _choose_products(x: Tensor) -> Backend:
    if x.element_size() == 2:
        return product_backend(x, "a triangle of tiles of 16-bit products on tensor cores")
    chosen = product_backend(x, "a triangle of tiles on float64 tensor cores")
    if chosen.name == "triton":
        from aniso.triton_kernels.tiles import multiplies_float64

        if not multiplies_float64(x.device):
            return Backend("torch", "this Triton compiles no float64 products for this GPU")
    return chosen


register_chooser("gram", _choose)
