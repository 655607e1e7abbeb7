"""Rows as float16 pieces, so that matrix products on tensor cores keep float32's accuracy.

A row is scaled by a power of two to a norm in (2¹³, 2¹⁴], which is exact and safe at any norm; then
x = hi + lo with both in float16. hi·hi + hi·lo + lo·hi misses x·y by at most 3·2⁻²⁴ |x||y|, at half
the cost of six bfloat16 products (three pieces of 8 bits each), and at twice the rate of tf32.
Rows of 16 bits fit in one piece: float16 holds them exactly down to 2⁻²⁷ of the row's norm, and
with an error of at most 2⁻³⁸ of the norm below that.
"""

# Functions under @triton.jit are Triton's language, without Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from .aot import POINTERS, AotCase, aot_case
from .launch_configs import COLUMN_MAX, PLANES

if TYPE_CHECKING:
    from torch import Tensor

_PADDING = 64  # columns of planes come in multiples of it, zeros beyond d
_MAX_PROGRAMS = 1024  # programs over rows that find the column maxima, enough to fill any GPU

_NORM_BITS = 14  # planes of directions have norms of at most 2¹⁴: elements stay below 65504
UNIT = 2.0**-_NORM_BITS
"""What a unit of a plane of directions is worth."""

NORM_BITS: tl.constexpr = tl.constexpr(_NORM_BITS)
FRACTION: tl.constexpr = tl.constexpr((1 << 52) - 1)
ONE_BITS: tl.constexpr = tl.constexpr(1023 << 52)
INF: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def _power_of_two(b_exponent):
    """2^e for a tensor of 64-bit exponents, through the bits of a float64."""
    return ((b_exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _exponent(b_v):
    """⌊log₂ v⌋ of positive, normal float64 values."""
    return (b_v.to(tl.int64, bitcast=True) >> 52) - 1023


@triton.jit
def _store_pieces(p_plane, plane_size, b_y, m_y, SPLIT: tl.constexpr):
    """Writes y as float16, and what that leaves out as a second plane."""
    b_y = b_y.to(tl.float32)
    b_hi = b_y.to(tl.float16)
    tl.store(p_plane, b_hi, mask=m_y)
    if SPLIT:
        tl.store(p_plane + plane_size, (b_y - b_hi.to(tl.float32)).to(tl.float16), mask=m_y)


@triton.jit(do_not_specialize=["N", "D", "plane_rows"])
def row_planes_kernel(
    x_ptr, inverse_ptr, planes_ptr, factors_ptr, N, D, stride_x, width, plane_rows,
    WEIGHT: tl.constexpr, SPLIT: tl.constexpr, RAW: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Planes of x·2^k·m^WEIGHT, then of x·2^k when RAW; m·2^-14 = 2^-k/‖x‖ goes to factors."""
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    b_inverse = tl.load(inverse_ptr + o_n, mask=o_n < N, other=0.0).to(tl.float64)
    m_kept = (b_inverse > 0.0) & (b_inverse < INF)
    b_safe = tl.where(m_kept, b_inverse, 1.0)
    b_scale = _power_of_two(_exponent(b_safe) + NORM_BITS)
    b_fraction = ((b_safe.to(tl.int64, bitcast=True) & FRACTION) | ONE_BITS).to(
        tl.float64, bitcast=True
    )
    m_x = m_kept[:, None] & (o_d < D)[None, :]
    b_x = tl.load(x_ptr + o_n[:, None] * stride_x + o_d[None, :], mask=m_x, other=0.0)
    b_y = b_x.to(tl.float64) * b_scale[:, None]
    b_weight = b_fraction if WEIGHT == 1 else b_fraction * b_fraction
    b_z = b_y * b_weight[:, None] if WEIGHT > 0 else b_y
    plane_size = plane_rows.to(tl.int64) * width
    p_plane = planes_ptr + o_n[:, None] * width + o_d[None, :]
    m_y = (o_n < plane_rows)[:, None] & (o_d < width)[None, :]
    _store_pieces(p_plane, plane_size, b_z, m_y, SPLIT)
    if RAW:
        _store_pieces(p_plane + 2 * plane_size, plane_size, b_y, m_y, False)
    if factors_ptr is not None:
        if tl.program_id(1) == 0:
            b_factor = tl.where(m_kept, b_inverse / b_scale, float("nan"))
            tl.store(factors_ptr + o_n, b_factor, mask=o_n < plane_rows)


@triton.jit(do_not_specialize=["N", "D"])
def column_max_kernel(
    x_ptr, max_bits_ptr, N, D, stride_x, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Max |x_k| of every column: bits of non-negative float32 values order as integers do."""
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    top = tl.zeros([BLOCK_N, BLOCK_D], tl.int32)
    for i_n in tl.range(tl.program_id(0) * BLOCK_N, N, tl.num_programs(0) * BLOCK_N):
        o_n = tl.cast(i_n, tl.int64) + tl.arange(0, BLOCK_N)
        m_x = (o_n < N)[:, None] & (o_d < D)[None, :]
        b_x = tl.load(x_ptr + o_n[:, None] * stride_x + o_d[None, :], mask=m_x, other=0.0)
        top = tl.maximum(top, tl.abs(b_x.to(tl.float32)).to(tl.int32, bitcast=True))
    tl.atomic_max(max_bits_ptr + o_d, tl.max(top, axis=0), mask=o_d < D, sem="relaxed")


@triton.jit(do_not_specialize=["N", "D", "plane_rows"])
def column_planes_kernel(
    x_ptr, units_ptr, planes_ptr, N, D, stride_x, width, plane_rows,
    SPLIT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Planes of x_k divided by the column's unit."""
    o_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    b_unit = tl.load(units_ptr + o_d, mask=o_d < D, other=1.0)
    m_x = (o_n < N)[:, None] & (o_d < D)[None, :]
    b_x = tl.load(x_ptr + o_n[:, None] * stride_x + o_d[None, :], mask=m_x, other=0.0)
    b_y = b_x.to(tl.float64) * _power_of_two(-_exponent(b_unit))[None, :]
    p_plane = planes_ptr + o_n[:, None] * width + o_d[None, :]
    m_y = (o_n < plane_rows)[:, None] & (o_d < width)[None, :]
    _store_pieces(p_plane, plane_rows.to(tl.int64) * width, b_y, m_y, SPLIT)


def plane_width(d: int) -> int:
    """Columns of a plane of rows [n, d]: what tiles and tensor maps need."""
    return int(triton.cdiv(d, _PADDING)) * _PADDING


def row_planes(
    x: Tensor,
    inverse_norms: Tensor,
    planes: Tensor,
    factors: Tensor | None,
    *,
    weight: int = 0,
    raw: bool = False,
) -> None:
    """Writes rows, scaled to one norm, as float16 planes.

    With 1/‖x‖ = m·2^(k-14), m in [1, 2): y = x·2^k has a norm in (2¹³, 2¹⁴], and y·m = 2¹⁴ x̂.

    Args:
        x: Rows [n, d], float32/float16/bfloat16, columns side by side.
        inverse_norms: 1/‖x‖, [n], float64 or float32; 0 makes a row of zeros, whatever it holds.
        planes: float16 [pieces, rows, width]: hi and lo of y·m^weight (hi alone when there is one
            piece and x has 16 bits), then y when raw. Rows from n on and columns from d on: zeros.
        factors: float32 [rows], receives 2^-k/‖x‖, NaN for rows left out. Default: not wanted.
        weight: 0, 1 or 2.
        raw: Append y; exact for rows of 16 bits only.
    """
    pieces, rows, width = planes.shape
    grid = (triton.cdiv(rows, PLANES.block_n), triton.cdiv(width, PLANES.block_d))
    row_planes_kernel[grid](
        x, inverse_norms, planes, factors, x.shape[0], x.shape[1], x.stride(0), width, rows,
        WEIGHT=weight, SPLIT=pieces - raw == 2, RAW=raw, **PLANES.constants(), **PLANES.options(),
    )  # fmt: skip


def column_units(x: Tensor, units: Tensor) -> None:
    """Finds a power of two per column that makes float16 of it: |x_k| < 2¹⁵ units.

    Args:
        x: Rows [n, d], finite, float32/float16/bfloat16, columns side by side.
        units: float64 [d], receives the power of two; 2⁻¹⁴ for columns of zeros.
    """
    n, d = x.shape
    max_bits = torch.zeros(d, dtype=torch.int32, device=x.device)
    programs = min(_MAX_PROGRAMS, triton.cdiv(n, COLUMN_MAX.block_n))
    column_max_kernel[(programs, triton.cdiv(d, COLUMN_MAX.block_d))](
        x, max_bits, n, d, x.stride(0), **COLUMN_MAX.constants(), **COLUMN_MAX.options()
    )
    top = max_bits.view(torch.float32).to(torch.float64)
    _, exponent = torch.frexp(torch.where(top > 0, top, 1.0))
    # Through the bits of a float64: torch.ldexp takes its power in float32.
    units.copy_(((exponent.to(torch.int64) - 1 - _NORM_BITS + 1023) << 52).view(torch.float64))


def column_planes(x: Tensor, units: Tensor, planes: Tensor) -> None:
    """Writes rows, each column in its unit, as float16 planes.

    Args:
        x: Rows [n, d], float32/float16/bfloat16, columns side by side.
        units: float64 [d], powers of two with |x_k| < 2¹⁵ units.
        planes: float16 [1 or 2, rows, width]: hi and lo of x_k in units. Rows from n on and columns
            from d on: zeros.
    """
    pieces, rows, width = planes.shape
    grid = (triton.cdiv(rows, PLANES.block_n), triton.cdiv(width, PLANES.block_d))
    column_planes_kernel[grid](
        x, units, planes, x.shape[0], x.shape[1], x.stride(0), width, rows,
        SPLIT=pieces == 2, **PLANES.constants(), **PLANES.options(),
    )  # fmt: skip


_TYPES = {
    "inverse_ptr": "*fp64", "planes_ptr": "*fp16", "factors_ptr": "*fp32", "units_ptr": "*fp64",
    "max_bits_ptr": "*i32", "N": "i32", "D": "i32", "stride_x": "i64", "width": "i32",
    "plane_rows": "i32",
}  # fmt: skip


def aot_cases() -> list[AotCase]:
    """Every kernel × dtype that makes planes."""
    cases = []
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        types = _TYPES | {"x_ptr": POINTERS[dtype]}
        half = dtype.itemsize == 2
        kinds = [
            {"WEIGHT": 0, "SPLIT": not half, "RAW": False},
            {"WEIGHT": 2 if half else 1, "SPLIT": True, "RAW": half},
        ]
        cases += [
            aot_case(f"{dtype} weight={k['WEIGHT']}", row_planes_kernel, types, k, PLANES)
            for k in kinds
        ]
        split = {"SPLIT": not half}
        cases.append(aot_case(str(dtype), column_planes_kernel, types, split, PLANES))
        cases.append(aot_case(str(dtype), column_max_kernel, types, {}, COLUMN_MAX))
    return cases
