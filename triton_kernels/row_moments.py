"""Sums over rows in one read of x: norms, Σx, Σx̂, squares per dimension, and row counts.

A persistent grid of programs takes blocks of rows in turn. A thread owns the same columns of every
row it sees, so that the float64 sums of its program stay in registers; each program then writes its
partial sums, and a last kernel folds them in a fixed order. No atomics: results repeat exactly.
Norm sums and counts come from one code per row, which spares the main kernel their registers.
Rows wider than ONE_READ_COLUMNS are read twice, first for their norms, then in column tiles.
"""

# Functions under @triton.jit are Triton's language, without Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from .aot import POINTERS, AotCase, aot_case
from .launch_configs import (
    FOLD,
    MIN_BLOCK_D,
    ONE_READ_COLUMNS,
    TALLIES,
    LaunchConfig,
    RowMomentsConfig,
    row_moments_config,
)

if TYPE_CHECKING:
    from torch import Tensor

_TALLY = 9  # Σ‖x‖, Σ‖x‖², Σ‖x‖⁴, min ‖x‖, max ‖x‖, four counts
_INTERPRETED_PROGRAMS = FOLD.block_p + 1  # the fewest that the fold takes in two steps

TALLY: tl.constexpr = tl.constexpr(_TALLY)
# Squares of any float64 row stay normal at one of the scales 1, 2^600, 2^-600.
UP: tl.constexpr = tl.constexpr(2.0**600)
DOWN: tl.constexpr = tl.constexpr(2.0**-600)
INF: tl.constexpr = tl.constexpr(float("inf"))
MASKED: tl.constexpr = tl.constexpr(-1.0)
NONFINITE: tl.constexpr = tl.constexpr(-2.0)


@triton.jit
def _squares(b_x, FLOAT64: tl.constexpr):
    """Σ_k x_k² over the last axis, at the scales 1, 2^600 and 2^-600."""
    b_v = b_x.to(tl.float64)
    b_mid = tl.sum(b_v * b_v, axis=1)
    b_high = b_mid
    b_low = b_mid
    if FLOAT64:
        b_high = tl.sum((b_v * UP) * (b_v * UP), axis=1)
        b_low = tl.sum((b_v * DOWN) * (b_v * DOWN), axis=1)
    return b_mid, b_high, b_low


@triton.jit
def _describe(b_mid, b_high, b_low, m_kept, FLOAT64: tl.constexpr):
    """Norm, 1/(‖x‖·scale), scale (a power of two), and whether each row is finite."""
    b_square = b_mid
    b_scale = tl.full(b_mid.shape, 1.0, tl.float64)
    b_unscale = b_scale
    if FLOAT64:
        m_tiny = b_mid < 1e-280
        m_huge = (b_mid > 1e290) | (b_mid != b_mid)
        b_square = tl.where(m_tiny, b_high, tl.where(m_huge, b_low, b_mid))
        b_scale = tl.where(m_tiny, UP, tl.where(m_huge, DOWN, b_scale))
        b_unscale = tl.where(m_tiny, DOWN, tl.where(m_huge, UP, b_unscale))
    m_finite = b_square < INF
    m_unit = m_kept & m_finite & (b_square > 0.0)
    b_inverse = tl.where(m_unit, tl.rsqrt(tl.where(m_unit, b_square, 1.0)), 0.0)
    b_norm = tl.where(m_unit, b_square * b_inverse, 0.0) * b_unscale
    return b_norm, b_inverse, b_scale, m_finite


@triton.jit
def _code(b_norm, m_kept, m_finite):
    """What a row tells the tally: its norm, or why it is left out."""
    return tl.where(m_kept, tl.where(m_finite, b_norm, NONFINITE), MASKED)


@triton.jit
def _no_columns(ELEMENT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """The column sums of no rows; max |x_k| in the type of x's values."""
    zero = tl.zeros([BLOCK_N, BLOCK_D], tl.float64)
    return zero, zero, zero, zero, tl.zeros([BLOCK_N, BLOCK_D], ELEMENT)


@triton.jit
def _columns_added(columns, b_x, b_inverse, b_scale, FLOAT64: tl.constexpr):
    """Adds rows (those left out read as zeros) to Σx, Σx̂, Σx_k², Σx̂_k², max |x_k|."""
    s_x, s_unit, s_square, s_unit_square, top = columns
    b_v = b_x.to(tl.float64)
    b_unit = (b_v * b_scale[:, None] if FLOAT64 else b_v) * b_inverse[:, None]
    s_x += b_v
    s_unit += b_unit
    s_square += b_v * b_v
    s_unit_square += b_unit * b_unit
    top = tl.maximum(top, tl.abs(b_x).to(top.dtype))
    return s_x, s_unit, s_square, s_unit_square, top


@triton.jit
def _store_columns(p_columns, columns, D, m_d):
    """Writes one program's column sums as [5, D]."""
    s_x, s_unit, s_square, s_unit_square, top = columns
    tl.store(p_columns, tl.sum(s_x, axis=0), mask=m_d)
    tl.store(p_columns + D, tl.sum(s_unit, axis=0), mask=m_d)
    tl.store(p_columns + 2 * D, tl.sum(s_square, axis=0), mask=m_d)
    tl.store(p_columns + 3 * D, tl.sum(s_unit_square, axis=0), mask=m_d)
    tl.store(p_columns + 4 * D, tl.max(top, axis=0).to(tl.float64), mask=m_d)


@triton.jit
def _row_offsets(i_block, BLOCK_N: tl.constexpr):
    """64-bit numbers of the rows of one block."""
    return tl.cast(i_block, tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def _load_kept(mask_ptr, stride_mask, o_n, m_rows, HAS_MASK: tl.constexpr):
    """Whether each row is in range and not masked."""
    m_kept = m_rows
    if HAS_MASK:
        m_kept = tl.load(mask_ptr + o_n * stride_mask, mask=m_rows, other=0) != 0
    return m_kept


@triton.jit
def _load_rows(x_ptr, stride_x, o_n, o_d, m_rows, m_d):
    """A tile [BLOCK_N, BLOCK_D] of x; zeros outside."""
    p_x = x_ptr + o_n[:, None] * stride_x + o_d[None, :]
    return tl.load(p_x, mask=m_rows[:, None] & m_d[None, :], other=0.0)


@triton.jit
def one_read_kernel(
    x_ptr, mask_ptr, codes_ptr, partials_ptr, N, D, stride_x, stride_mask,
    HAS_MASK: tl.constexpr, FLOAT64: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """Column sums of a program's rows, each read once, and the codes; a tile holds whole rows."""
    i_p = tl.program_id(0)
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    columns = _no_columns(tl.float64 if FLOAT64 else tl.float32, BLOCK_N, BLOCK_D)
    blocks = tl.cdiv(N, BLOCK_N)
    for i_block in tl.range(i_p, blocks, tl.num_programs(0), num_stages=NUM_STAGES):
        o_n = _row_offsets(i_block, BLOCK_N)
        m_rows = o_n < N
        b_x = _load_rows(x_ptr, stride_x, o_n, o_d, m_rows, m_d)
        m_kept = _load_kept(mask_ptr, stride_mask, o_n, m_rows, HAS_MASK)
        b_mid, b_high, b_low = _squares(b_x, FLOAT64)
        b_norm, b_inverse, b_scale, m_finite = _describe(b_mid, b_high, b_low, m_kept, FLOAT64)
        tl.store(codes_ptr + o_n, _code(b_norm, m_kept, m_finite), mask=m_rows)
        b_x = tl.where((m_kept & m_finite)[:, None], b_x, 0.0)
        columns = _columns_added(columns, b_x, b_inverse, b_scale, FLOAT64)
    p_partial = partials_ptr + tl.cast(i_p, tl.int64) * (5 * D + TALLY)
    _store_columns(p_partial + o_d, columns, D, m_d)


@triton.jit
def norms_kernel(
    x_ptr, mask_ptr, codes_ptr, notes_ptr, N, D, stride_x, stride_mask,
    HAS_MASK: tl.constexpr, FLOAT64: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """First read of wide rows: codes, and (1/(‖x‖·scale), scale or 0 where a row is left out)."""
    for i_block in tl.range(tl.program_id(0), tl.cdiv(N, BLOCK_N), tl.num_programs(0)):
        o_n = _row_offsets(i_block, BLOCK_N)
        m_rows = o_n < N
        b_mid = tl.zeros([BLOCK_N], tl.float64)
        b_high = b_mid
        b_low = b_mid
        for i_d in tl.range(0, D, BLOCK_D):
            o_d = i_d + tl.arange(0, BLOCK_D)
            b_x = _load_rows(x_ptr, stride_x, o_n, o_d, m_rows, o_d < D)
            b_1, b_2, b_3 = _squares(b_x, FLOAT64)
            b_mid += b_1
            b_high += b_2
            b_low += b_3
        m_kept = _load_kept(mask_ptr, stride_mask, o_n, m_rows, HAS_MASK)
        b_norm, b_inverse, b_scale, m_finite = _describe(b_mid, b_high, b_low, m_kept, FLOAT64)
        tl.store(codes_ptr + o_n, _code(b_norm, m_kept, m_finite), mask=m_rows)
        tl.store(notes_ptr + 2 * o_n, b_inverse, mask=m_rows)
        tl.store(notes_ptr + 2 * o_n + 1, tl.where(m_kept & m_finite, b_scale, 0.0), mask=m_rows)


@triton.jit
def columns_kernel(
    x_ptr, notes_ptr, partials_ptr, N, D, stride_x,
    FLOAT64: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """Second read of wide rows: the column sums of one tile of columns."""
    i_p = tl.program_id(0)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_d = o_d < D
    columns = _no_columns(tl.float64 if FLOAT64 else tl.float32, BLOCK_N, BLOCK_D)
    blocks = tl.cdiv(N, BLOCK_N)
    for i_block in tl.range(i_p, blocks, tl.num_programs(0), num_stages=NUM_STAGES):
        o_n = _row_offsets(i_block, BLOCK_N)
        m_rows = o_n < N
        b_x = _load_rows(x_ptr, stride_x, o_n, o_d, m_rows, m_d)
        b_inverse = tl.load(notes_ptr + 2 * o_n, mask=m_rows, other=0.0)
        b_scale = tl.load(notes_ptr + 2 * o_n + 1, mask=m_rows, other=0.0)
        b_x = tl.where((b_scale != 0.0)[:, None], b_x, 0.0)
        columns = _columns_added(columns, b_x, b_inverse, b_scale, FLOAT64)
    p_partial = partials_ptr + tl.cast(i_p, tl.int64) * (5 * D + TALLY)
    _store_columns(p_partial + o_d, columns, D, m_d)


@triton.jit
def tally_kernel(codes_ptr, partials_ptr, N, D, BLOCK_N: tl.constexpr):
    """Norm sums, norm range and counts of a program's share of the codes."""
    i_p = tl.program_id(0)
    norm_1 = tl.zeros([BLOCK_N], tl.float64)
    norm_2 = norm_1
    norm_4 = norm_1
    low = norm_1 + INF
    high = norm_1
    kept = norm_1  # counts stay below 2^53
    zero = norm_1
    nonfinite = norm_1
    masked = norm_1
    for i_block in tl.range(i_p, tl.cdiv(N, BLOCK_N), tl.num_programs(0)):
        o_n = _row_offsets(i_block, BLOCK_N)
        m_n = o_n < N
        b_code = tl.load(codes_ptr + o_n, mask=m_n, other=0.0)
        m_kept = m_n & (b_code >= 0.0)
        b_norm = tl.where(m_kept, b_code, 0.0)
        b_square = b_norm * b_norm
        norm_1 += b_norm
        norm_2 += b_square
        norm_4 += b_square * b_square
        low = tl.minimum(low, tl.where(m_kept, b_norm, INF))
        high = tl.maximum(high, b_norm)
        kept += m_kept.to(tl.float64)
        zero += (m_kept & (b_norm == 0.0)).to(tl.float64)
        nonfinite += (b_code == NONFINITE).to(tl.float64)
        masked += (b_code == MASKED).to(tl.float64)
    p_tally = partials_ptr + tl.cast(i_p, tl.int64) * (5 * D + TALLY) + 5 * D
    tl.store(p_tally + 0, tl.sum(norm_1, axis=0))
    tl.store(p_tally + 1, tl.sum(norm_2, axis=0))
    tl.store(p_tally + 2, tl.sum(norm_4, axis=0))
    tl.store(p_tally + 3, tl.min(low, axis=0))
    tl.store(p_tally + 4, tl.max(high, axis=0))
    tl.store(p_tally + 5, tl.sum(kept, axis=0))
    tl.store(p_tally + 6, tl.sum(zero, axis=0))
    tl.store(p_tally + 7, tl.sum(nonfinite, axis=0))
    tl.store(p_tally + 8, tl.sum(masked, axis=0))


@triton.jit
def fold_kernel(
    partials_ptr, sums_ptr, norm_sums_ptr, norm_range_ptr, abs_max_ptr, counts_ptr, P, D,
    BLOCK_P: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Folds partials [P, 5 D + 9] in a fixed order and adds them to the caller's accumulators."""
    o_j = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J)
    width = 5 * D + TALLY
    total = tl.zeros([BLOCK_P, BLOCK_J], tl.float64)
    high = total
    low = total + INF
    for i_p in tl.range(0, P, BLOCK_P):
        o_p = i_p + tl.arange(0, BLOCK_P)
        m_pj = (o_p < P)[:, None] & (o_j < width)[None, :]
        p_j = partials_ptr + o_p.to(tl.int64)[:, None] * width + o_j[None, :]
        b_j = tl.load(p_j, mask=m_pj, other=0.0)
        total += b_j
        high = tl.maximum(high, b_j)
        low = tl.minimum(low, tl.where(m_pj, b_j, INF))
    b_sum = tl.sum(total, axis=0)
    b_high = tl.max(high, axis=0)
    b_low = tl.min(low, axis=0)
    o_t = o_j - 5 * D
    _add(sums_ptr + o_j, b_sum, o_j < 4 * D)
    _raise(abs_max_ptr + o_j - 4 * D, b_high, (o_j >= 4 * D) & (o_t < 0))
    _add(norm_sums_ptr + o_t, b_sum, (o_t >= 0) & (o_t < 3))
    p_low = norm_range_ptr + o_t - 3
    b_low = tl.minimum(b_low, tl.load(p_low, mask=o_t == 3, other=0.0))
    tl.store(p_low, b_low, mask=o_t == 3)
    _raise(norm_range_ptr + o_t - 3, b_high, o_t == 4)
    _add(counts_ptr + o_t - 5, b_sum.to(tl.int64), (o_t >= 5) & (o_t < TALLY))


@triton.jit
def _add(p_out, b_value, m_out):
    """Adds values in place where the mask says so."""
    tl.store(p_out, tl.load(p_out, mask=m_out, other=0) + b_value, mask=m_out)


@triton.jit
def _raise(p_out, b_value, m_out):
    """Takes the maximum in place where the mask says so."""
    b_value = tl.maximum(tl.load(p_out, mask=m_out, other=0.0), b_value)
    tl.store(p_out, b_value, mask=m_out)


def row_moments(
    x: Tensor,
    mask: Tensor | None,
    sums: Tensor,
    norm_sums: Tensor,
    norm_range: Tensor,
    abs_max: Tensor,
    counts: Tensor,
) -> None:
    """Adds the moments of the kept rows of x to five accumulators.

    x̂ = x/‖x‖. Kept rows are finite and not masked; zero rows are kept, without a direction.

    Args:
        x: Rows, shape [n, d], float64/float32/float16/bfloat16, columns side by side.
        mask: Rows to keep, shape [n], bool or one byte, any stride. Default: all.
        sums: float64 [4, d], contiguous: += Σx, Σx̂, Σx_k², Σx̂_k².
        norm_sums: float64 [3]: += Σ‖x‖, Σ‖x‖², Σ‖x‖⁴.
        norm_range: float64 [2]: min and max with the min and max of ‖x‖.
        abs_max: float64 [d]: max with max |x_k|.
        counts: int64 [4]: += rows kept, of them zero, non-finite, masked.

    Time O(n d), one read of x for d <= 4096, else two; memory O(d) per program, and 8 bytes per row
    (24 where x is read twice). Accumulates in float64, in an order fixed by shape and device.
    """
    n, d = x.shape
    if n == 0:
        return
    config = row_moments_config(d, x.element_size())
    tiles = 1 if d <= ONE_READ_COLUMNS else triton.cdiv(d, config.block_d)
    blocks = triton.cdiv(n, config.block_n)
    programs = min(blocks, max(1, _resident_programs(x, config) // tiles))
    codes = torch.empty(n, dtype=torch.float64, device=x.device)
    partials = torch.empty(programs, 5 * d + _TALLY, dtype=torch.float64, device=x.device)
    if tiles == 1:
        _launch_one_read(x, mask, codes, partials, config)
    else:
        _launch_two_reads(x, mask, codes, partials, config, tiles)
    tally_kernel[(programs,)](codes, partials, n, d, **TALLIES.constants(), **TALLIES.options())
    fold_kernel[(triton.cdiv(partials.shape[1], FOLD.block_j),)](
        partials, sums, norm_sums, norm_range, abs_max, counts, programs, d,
        **FOLD.constants(), **FOLD.options(),
    )  # fmt: skip


def _resident_programs(x: Tensor, config: RowMomentsConfig) -> int:
    if x.device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    properties = torch.cuda.get_device_properties(x.device)
    return int(properties.multi_processor_count) * config.programs_per_sm


def _mask_arguments(mask: Tensor | None, stand_in: Tensor) -> tuple[Tensor, int]:
    """The mask as bytes and its stride; without one, a pointer that is never read."""
    if mask is None:
        return stand_in.view(torch.uint8), 0
    return mask.view(torch.uint8), mask.stride(0)


def _launch_one_read(
    x: Tensor, mask: Tensor | None, codes: Tensor, partials: Tensor, config: RowMomentsConfig
) -> None:
    mask_bytes, stride_mask = _mask_arguments(mask, partials)
    one_read_kernel[(partials.shape[0],)](
        x, mask_bytes, codes, partials, x.shape[0], x.shape[1], x.stride(0), stride_mask,
        HAS_MASK=mask is not None, FLOAT64=x.dtype == torch.float64,
        **config.constants(), NUM_STAGES=config.num_stages, **config.options(),
    )  # fmt: skip


def _launch_two_reads(
    x: Tensor,
    mask: Tensor | None,
    codes: Tensor,
    partials: Tensor,
    config: RowMomentsConfig,
    tiles: int,
) -> None:
    mask_bytes, stride_mask = _mask_arguments(mask, partials)
    notes = torch.empty(x.shape[0], 2, dtype=torch.float64, device=x.device)
    norms_kernel[(partials.shape[0],)](
        x, mask_bytes, codes, notes, x.shape[0], x.shape[1], x.stride(0), stride_mask,
        HAS_MASK=mask is not None, FLOAT64=x.dtype == torch.float64,
        **config.constants(), **config.options(),
    )  # fmt: skip
    columns_kernel[(partials.shape[0], tiles)](
        x, notes, partials, x.shape[0], x.shape[1], x.stride(0), FLOAT64=x.dtype == torch.float64,
        **config.constants(), NUM_STAGES=config.num_stages, **config.options(),
    )  # fmt: skip


_TYPES = {
    "mask_ptr": "*u8", "codes_ptr": "*fp64", "notes_ptr": "*fp64", "partials_ptr": "*fp64",
    "sums_ptr": "*fp64", "norm_sums_ptr": "*fp64", "norm_range_ptr": "*fp64",
    "abs_max_ptr": "*fp64", "counts_ptr": "*i64", "N": "i64", "D": "i32", "P": "i32",
    "stride_x": "i64", "stride_mask": "i64",
}  # fmt: skip


def aot_cases() -> list[AotCase]:
    """Every kernel × launch configuration × dtype that `row_moments` can launch."""
    cases = [
        _case(tally_kernel, torch.float64, 1, TALLIES),
        _case(fold_kernel, torch.float64, 1, FOLD),
    ]
    for dtype in POINTERS:
        for d in (
            1 << k for k in range(MIN_BLOCK_D.bit_length() - 1, ONE_READ_COLUMNS.bit_length())
        ):
            cases.append(_case(one_read_kernel, dtype, d, row_moments_config(d, dtype.itemsize)))
        tile = row_moments_config(ONE_READ_COLUMNS + 1, dtype.itemsize)
        cases += [
            _case(k, dtype, ONE_READ_COLUMNS + 1, tile) for k in (norms_kernel, columns_kernel)
        ]
    return cases


def _case(kernel: Any, dtype: torch.dtype, d: int, config: LaunchConfig) -> AotCase:
    types = _TYPES | {"x_ptr": POINTERS[dtype]}
    constants = {"HAS_MASK": True, "FLOAT64": dtype == torch.float64}
    return aot_case(f"{dtype} d={d}", kernel, types, constants, config)
