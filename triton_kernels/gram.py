"""Σ w² x xᵀ over rows, added to float64: matrix products of pieces, only the triangle's tiles.

A program owns a tile of the lower triangle and a share of the rows. Its sums climb three steps:
a tensor-core accumulator for at most 512 products per entry, because it truncates; float32 sums of
these, rounded to nearest; and a float64 tile in memory that no other program touches. A last
kernel folds the shares in a fixed order into both triangles. No atomics: results repeat exactly.

Pieces (see planes.py) and products per row of x:
    16 bits, raw           x·x                     1 product, exact, straight from x
    16 bits, directions    (w²x)·x, w²x = hi + lo  2 products: one side stays exact
    float32                hi·hi + lo·hi + hi·lo   3 products
    float64                x·x                     float64 tensor cores
One product per dot and one dot per step of the loop: with more, Triton 3.6 to 3.9 put no wait
before the promotion, and ptxas then runs every wgmma alone.
"""

# Functions under @triton.jit are Triton's language, without Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from .aot import POINTERS, AotCase, aot_case
from .launch_configs import GRAM_FOLD, GRAM_WAVES, NARROW_COLUMNS, GramConfig, gram_config
from .planes import UNIT, column_planes, column_units, plane_width, row_planes
from .tiles import (
    FLOAT64_DOTS,
    capability,
    descriptor_type,
    fits_descriptor,
    halves,
    load_tile,
    lower_triangle,
    multiprocessors,
    tile_source,
)

if TYPE_CHECKING:
    from torch import Tensor

_SLAB_BYTES = 1 << 29  # planes of this many bytes at a time: memory stays bounded


@triton.jit(do_not_specialize=["N", "all_rows", "plane_rows", "share"])
def gram_kernel(
    x, sums_ptr, N, D, stride_x, all_rows, plane_rows, share,
    PRODUCTS: tl.constexpr, DESCRIPTORS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    PROMOTE_DOTS: tl.constexpr, SPAN_DOTS: tl.constexpr, PARTS: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """Adds one tile of Σ P_aᵀ P_b over one share of the rows, for PRODUCTS pairs of planes."""
    i_row, i_column, p_sum, first, last = _my_part(sums_ptr, N, share, BLOCK_D)
    for i_span in tl.range(first, last, SPAN_DOTS // PRODUCTS * BLOCK_N):
        rows = tl.minimum(last - i_span, SPAN_DOTS // PRODUCTS * BLOCK_N)
        b_acc = tl.zeros([BLOCK_D, BLOCK_D], tl.float32)
        b_total = tl.zeros([BLOCK_D, BLOCK_D], tl.float32)
        for i_dot in tl.range(0, tl.cdiv(rows, BLOCK_N) * PRODUCTS, num_stages=NUM_STAGES):
            i_n = i_span + i_dot // PRODUCTS * BLOCK_N
            i_a, i_b = _planes_of(i_dot % PRODUCTS, i_n, plane_rows, PRODUCTS)
            b_a = load_tile(x, stride_x, i_a, i_row, all_rows, D, BLOCK_N, BLOCK_D, DESCRIPTORS)
            b_b = load_tile(x, stride_x, i_b, i_column, all_rows, D, BLOCK_N, BLOCK_D, DESCRIPTORS)
            b_acc = tl.dot(b_a.T, b_b, b_acc)
            if i_dot % PROMOTE_DOTS == PROMOTE_DOTS - 1:
                b_total += b_acc
                # Zeros would become a select outside of this branch, where the wgmma still runs.
                b_acc -= b_acc
        _add_to(p_sum, b_total + b_acc, BLOCK_D, PARTS)


@triton.jit
def _add_to(p_sum, b_sum, SIDE: tl.constexpr, PARTS: tl.constexpr):
    """Adds to a float64 tile in memory, PARTS columns' parts in turn: few values live at once."""
    ROWS: tl.constexpr = b_sum.shape[0]
    COLUMNS: tl.constexpr = b_sum.shape[1]
    if PARTS > 1:
        b_left, b_right = halves(b_sum)
        _add_to(p_sum, b_left, SIDE, PARTS // 2)
        _add_to(p_sum + COLUMNS // 2, b_right, SIDE, PARTS // 2)
    else:
        p_part = p_sum + tl.arange(0, ROWS)[:, None] * SIDE + tl.arange(0, COLUMNS)[None, :]
        tl.store(p_part, tl.load(p_part) + b_sum.to(tl.float64))


@triton.jit
def _my_part(sums_ptr, N, share, BLOCK_D: tl.constexpr):
    """First column of either side, the tile's sums, and the rows of this program."""
    i_tile = tl.program_id(0)
    i_share = tl.program_id(1)
    i, j = lower_triangle(i_tile)
    i_sum = tl.cast(i_share, tl.int64) * tl.num_programs(0) + i_tile
    p_sum = sums_ptr + i_sum * BLOCK_D * BLOCK_D
    first = i_share * share
    i_row = i.to(tl.int32) * BLOCK_D
    return i_row, j.to(tl.int32) * BLOCK_D, p_sum, first, tl.minimum(N, first + share)


@triton.jit
def _planes_of(i_product, i_n, plane_rows, PRODUCTS: tl.constexpr):
    """Rows of the two tiles of a product, the planes lying one below the other."""
    i_a = i_n
    i_b = i_n
    if PRODUCTS == 2:
        i_a = i_n + i_product * plane_rows
        i_b = i_n + 2 * plane_rows
    if PRODUCTS == 3:
        i_a = tl.where(i_product == 1, i_n + plane_rows, i_n)
        i_b = tl.where(i_product == 2, i_n + plane_rows, i_n)
    return i_a, i_b


@triton.jit(do_not_specialize=["N", "share"])
def gram64_kernel(
    x_ptr, sums_ptr, N, D, stride_x, share,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """Adds one tile of Σxxᵀ over one share of float64 rows."""
    i_row, i_column, p_sum, first, last = _my_part(sums_ptr, N, share, BLOCK_D)
    b_acc = tl.zeros([BLOCK_D, BLOCK_D], tl.float64)
    for i_n in tl.range(first, last, BLOCK_N, num_stages=NUM_STAGES):
        b_a = load_tile(x_ptr, stride_x, i_n, i_row, last, D, BLOCK_N, BLOCK_D, False)
        b_b = load_tile(x_ptr, stride_x, i_n, i_column, last, D, BLOCK_N, BLOCK_D, False)
        b_acc = tl.dot(b_a.T, b_b, b_acc, out_dtype=tl.float64)
    _add_to(p_sum, b_acc, BLOCK_D, 1)


@triton.jit
def fold_kernel(
    sums_ptr, units_ptr, out_ptr, D, stride_out, tiles, shares,
    SIDE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Adds BLOCK_N rows of a tile, summed over the shares, to both triangles of out."""
    i, j = lower_triangle(tl.program_id(0))
    o_r = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_c = tl.arange(0, SIDE)
    o_low = tl.maximum(o_r[:, None], o_c[None, :]) * SIDE + tl.minimum(o_r[:, None], o_c[None, :])
    # Above the diagonal a tile on it takes the sums from below: out stays symmetric to the bit.
    o_sum = tl.where(i == j, o_low, o_r[:, None] * SIDE + o_c[None, :])
    b_sum = tl.zeros([BLOCK_N, SIDE], tl.float64)
    for i_share in tl.range(0, shares):
        i_sum = tl.cast(i_share, tl.int64) * tiles + tl.program_id(0)
        b_sum += tl.load(sums_ptr + i_sum * SIDE * SIDE + o_sum)
    o_i = i * SIDE + o_r[:, None]
    o_j = j * SIDE + o_c[None, :]
    if units_ptr is not None:
        b_sum *= tl.load(units_ptr + o_i, mask=o_i < D, other=0.0)
        b_sum *= tl.load(units_ptr + o_j, mask=o_j < D, other=0.0)
    m_out = (o_i < D) & (o_j < D)
    p_out = out_ptr + o_i * stride_out + o_j
    tl.store(p_out, tl.load(p_out, mask=m_out, other=0.0) + b_sum, mask=m_out)
    if i != j:
        p_out = out_ptr + o_j * stride_out + o_i
        tl.store(p_out, tl.load(p_out, mask=m_out, other=0.0) + b_sum, mask=m_out)


def gram(x: Tensor, inverse_norms: Tensor | None, out: Tensor, *, any_range: bool = False) -> None:
    """Adds Σ w_i² x_i x_iᵀ to out, w_i = 1 or 1/‖x_i‖.

    Args:
        x: Rows, shape [n, d], float64/float32/float16/bfloat16, columns side by side. Rows that are
            not left out are finite.
        inverse_norms: w_i = 1/‖x_i‖, [n], float64 or float32; 0 leaves a row out. Default: w_i = 1.
        out: float64 [d, d], columns side by side; both triangles are added to.
        any_range: Scale the columns of raw bfloat16 rows first, at two more reads and a copy.
            Without it, products below 2⁻¹²⁶ are lost, and those above 2¹¹⁸ overflow. Other dtypes
            need no such care.

    Errors of entry (p, q), relative to the sum of |w² x_p x_q|: rounding of at most 3·2⁻²⁴ for
    float32 rows (2⁻²³ for directions of 16 bits, none for raw 16 bits and float64), and the
    truncation of the tensor cores' sums, 7e-7 where all products have one sign. Values below 2⁻¹⁵
    of the largest in their column (directions: of the row's norm) are rounded to 2⁻³⁹ of that.

    Time O(n d²/2) per product (see above), memory O(d²) float64 and at most 512 MiB of planes.
    """
    n, d = x.shape
    if n == 0:
        return
    config = gram_config(d, x.element_size(), capability(x.device))
    side = triton.cdiv(d, config.block_d)
    tiles = side * (side + 1) // 2
    shares = _shares(tiles, triton.cdiv(n, config.block_n), multiprocessors(x.device))
    sums = torch.zeros(shares, tiles, config.block_d**2, dtype=torch.float64, device=x.device)
    units = None
    if x.dtype == torch.float64:
        _add64(x, inverse_norms, sums, config)
    elif inverse_norms is None and not any_range and _direct(x, config):
        _launch(x, sums, config, products=1)
    else:
        units = torch.full((d,), UNIT, dtype=torch.float64, device=x.device)
        _add_planes(x, inverse_norms, sums, config, units)
    grid = (tiles, config.block_d // GRAM_FOLD.block_n)
    fold_kernel[grid](
        sums, units, out, d, out.stride(0), tiles, shares, SIDE=config.block_d,
        **GRAM_FOLD.constants(), **GRAM_FOLD.options(),
    )  # fmt: skip


def _direct(x: Tensor, config: GramConfig) -> bool:
    """Whether tiles of raw rows can be multiplied as they are."""
    # Triton's interpreter multiplies the bits of bfloat16 as integers.
    exact = x.dtype == torch.float16 or (x.dtype == torch.bfloat16 and x.is_cuda)
    return exact and (fits_descriptor(x) or not config.descriptors)


def _shares(tiles: int, steps: int, processors: int) -> int:
    """Shares of the rows per tile: the fewest that keep the processors busiest."""
    most = max(1, min(steps, max(GRAM_WAVES, GRAM_WAVES * processors // tiles)))

    def busy(shares: int) -> float:
        programs = tiles * shares
        return round(programs / (int(triton.cdiv(programs, processors)) * processors), 2)

    return max(range(1, most + 1), key=lambda shares: (busy(shares), -shares))


def _share_rows(n: int, shares: int, config: GramConfig) -> int:
    """Rows per share, whole steps of the kernel."""
    return int(triton.cdiv(n, shares * config.block_n)) * config.block_n


def _add64(x: Tensor, inverse_norms: Tensor | None, sums: Tensor, config: GramConfig) -> None:
    """Multiplies float64 rows; directions are written out a slab at a time."""
    n, d = x.shape
    step = n if inverse_norms is None else max(1, _SLAB_BYTES // (8 * d))
    for start in range(0, n, step):
        rows = x[start : start + step]
        if inverse_norms is not None:
            weights = inverse_norms[start : start + step, None].to(torch.float64)
            rows = torch.where(weights > 0, rows * weights, 0.0)
        share = _share_rows(rows.shape[0], sums.shape[0], config)
        gram64_kernel[(sums.shape[1], sums.shape[0])](
            rows, sums, rows.shape[0], d, rows.stride(0), share,
            **config.constants(), NUM_STAGES=config.num_stages, **config.options(),
        )  # fmt: skip


def _add_planes(
    x: Tensor, inverse_norms: Tensor | None, sums: Tensor, config: GramConfig, units: Tensor
) -> None:
    """Writes the pieces of a slab of rows, multiplies them, and goes on to the next slab."""
    half, directions = x.element_size() == 2, inverse_norms is not None
    products = 1 if half and not directions else 2 if half else 3
    pieces = {1: 1, 2: 3, 3: 2}[products]
    width = plane_width(x.shape[1])
    most = _SLAB_BYTES // (2 * pieces * width)
    step = min(triton.cdiv(x.shape[0], config.block_n), max(1, most // config.block_n))
    step *= config.block_n
    planes = torch.empty(pieces, step, width, dtype=torch.float16, device=x.device)
    if inverse_norms is None:
        column_units(x, units)
    for start in range(0, x.shape[0], step):
        rows = x[start : start + step]
        if inverse_norms is None:
            column_planes(rows, units, planes)
        else:
            weights = inverse_norms[start : start + step]
            row_planes(rows, weights, planes, None, weight=2 if half else 1, raw=half)
        _launch(planes.view(-1, width), sums, config, products, rows.shape[0], step)


def _launch(
    x: Tensor,
    sums: Tensor,
    config: GramConfig,
    products: int,
    n: int | None = None,
    plane_rows: int = 0,
) -> None:
    """Multiplies the planes of n rows that lie one below the other in x (default: x itself)."""
    n = x.shape[0] if n is None else n
    source = tile_source(x, config.block_n, config.block_d, descriptors=config.descriptors)
    gram_kernel[(sums.shape[1], sums.shape[0])](
        source, sums, n, x.shape[1], x.stride(0), x.shape[0], plane_rows,
        _share_rows(n, sums.shape[0], config),
        PRODUCTS=products, **_constants(config), **config.constants(), **config.options(),
    )  # fmt: skip


def _constants(config: GramConfig) -> dict[str, Any]:
    """Compile-time arguments of the launch besides its blocks."""
    return {
        "DESCRIPTORS": config.descriptors,
        "PROMOTE_DOTS": config.promote_dots,
        "SPAN_DOTS": config.span_dots,
        "PARTS": config.parts,
        "NUM_STAGES": config.num_stages,
    }


_TYPES = {
    "x_ptr": "*fp64", "units_ptr": "*fp64", "sums_ptr": "*fp64", "out_ptr": "*fp64", "N": "i32",
    "D": "i32", "stride_x": "i64", "all_rows": "i32", "plane_rows": "i32", "share": "i32",
    "stride_out": "i64", "tiles": "i32", "shares": "i32",
}  # fmt: skip


def aot_cases() -> list[AotCase]:
    """Every kernel × launch configuration × dtype that `gram` can launch, planes apart."""
    cases = []
    for d in (NARROW_COLUMNS, NARROW_COLUMNS + 1):
        for capabilities in ((80,), (90, 100)):
            config = gram_config(d, 2, capabilities[0])
            launches = [(torch.bfloat16, 1), *((torch.float16, k) for k in (1, 2, 3))]
            cases += [_case(dtype, k, config, capabilities) for dtype, k in launches]
        side = {"SIDE": config.block_d}
        cases.append(aot_case(f"d={d}", fold_kernel, _TYPES, side, GRAM_FOLD))
    config = gram_config(1, 8, 0)
    cases.append(aot_case(str(torch.float64), gram64_kernel, _TYPES, {}, config, FLOAT64_DOTS))
    return cases


def _case(
    dtype: torch.dtype, products: int, config: GramConfig, capabilities: tuple[int, ...]
) -> AotCase:
    pointer = POINTERS[dtype]
    tile = descriptor_type(pointer[1:], config.block_n, config.block_d)
    types = _TYPES | {"x": tile if config.descriptors else pointer}
    constants = _constants(config) | {"PRODUCTS": products}
    name = f"{dtype} side={config.block_d} products={products}"
    return aot_case(name, gram_kernel, types, constants, config, capabilities)
