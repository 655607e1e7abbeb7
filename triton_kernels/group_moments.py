"""Sums over the rows of every group, walked in the order of the groups: count, Σx, Σx̂, Σ‖x‖².

One program per run of rows. Sorted runs instead of atomics: every output has one writer, so results
repeat exactly, and products of the sums need no sums in memory. x is read twice, first for norms.
"""

# Functions under @triton.jit are Triton's language, without Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from .aot import AotCase
from .launch_configs import GROUP_COUNTS, GROUP_TILES, LaunchConfig, group_moments_config
from .row_moments import norms_kernel

if TYPE_CHECKING:
    from torch import Tensor

_MOST_PROGRAMS = 1 << 14  # persistent beyond: enough to fill any GPU several times (estimated)


@triton.jit
def _run_columns(
    x_ptr, order_ptr, notes_ptr, begin, end, o_d, D, stride_x,
    FLOAT64: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Σx and Σx̂ of one tile of columns over the rows of one run."""
    s_x = tl.zeros([BLOCK_N, BLOCK_D], tl.float64)
    s_unit = s_x
    for i in tl.range(begin, end, BLOCK_N):
        o_i = i + tl.arange(0, BLOCK_N)
        o_n = tl.load(order_ptr + o_i, mask=o_i < end, other=0)
        b_inverse = tl.load(notes_ptr + 2 * o_n)
        b_scale = tl.load(notes_ptr + 2 * o_n + 1)
        # A scale of 0 marks rows that are not finite.
        m_x = ((o_i < end) & (b_scale != 0.0))[:, None] & (o_d < D)[None, :]
        b_x = tl.load(x_ptr + o_n[:, None] * stride_x + o_d[None, :], mask=m_x, other=0.0)
        b_v = b_x.to(tl.float64)
        s_x += b_v
        s_unit += (b_v * b_scale[:, None] if FLOAT64 else b_v) * b_inverse[:, None]
    return tl.sum(s_x, axis=0), tl.sum(s_unit, axis=0)


@triton.jit
def _add(p_out, b_value, m_out):
    """Adds values in place where the mask says so."""
    tl.store(p_out, tl.load(p_out, mask=m_out, other=0.0) + b_value, mask=m_out)


@triton.jit
def counts_kernel(
    order_ptr, begin_ptr, end_ptr, slot_ptr, codes_ptr, counts_ptr, square_norms_ptr, S,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Rows with a direction, and the sum of squared norms, of each run."""
    for i_s in tl.range(tl.program_id(0), S, tl.num_programs(0)):
        begin = tl.load(begin_ptr + i_s)
        end = tl.load(end_ptr + i_s)
        slot = tl.load(slot_ptr + i_s)
        directions = tl.zeros([BLOCK_N], tl.int64)
        squares = tl.zeros([BLOCK_N], tl.float64)
        for i in tl.range(begin, end, BLOCK_N):
            o_i = i + tl.arange(0, BLOCK_N)
            o_n = tl.load(order_ptr + o_i, mask=o_i < end, other=0)
            b_norm = tl.load(codes_ptr + o_n, mask=o_i < end, other=0.0)
            b_norm = tl.where(b_norm > 0.0, b_norm, 0.0)  # negative where a row is left out
            directions += (b_norm > 0.0).to(tl.int64)
            squares += b_norm * b_norm
        p_count = counts_ptr + slot
        p_square = square_norms_ptr + slot
        tl.store(p_count, tl.load(p_count) + tl.sum(directions, axis=0))
        tl.store(p_square, tl.load(p_square) + tl.sum(squares, axis=0))


@triton.jit
def runs_kernel(
    x_ptr, order_ptr, begin_ptr, end_ptr, slot_ptr, notes_ptr, scale_ptr,
    sums_ptr, unit_sums_ptr, products_ptr, totals_ptr, S, D, stride_x,
    HAS_SUMS: tl.constexpr, HAS_UNIT_SUMS: tl.constexpr, HAS_PRODUCTS: tl.constexpr,
    FLOAT64: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds a program's runs to the sums or products of their groups, and to its totals."""
    for i_s in tl.range(tl.program_id(0), S, tl.num_programs(0)):
        begin = tl.load(begin_ptr + i_s)
        end = tl.load(end_ptr + i_s)
        slot = tl.load(slot_ptr + i_s)
        scale = tl.load(scale_ptr)
        unit_unit = tl.zeros([BLOCK_D], tl.float64)
        unit_mean = unit_unit
        mean_mean = unit_unit
        for i_d in tl.range(0, D, BLOCK_D):
            o_d = i_d + tl.arange(0, BLOCK_D)
            b_x, b_unit = _run_columns(
                x_ptr, order_ptr, notes_ptr, begin, end, o_d, D, stride_x, FLOAT64, BLOCK_N, BLOCK_D
            )
            if HAS_SUMS:
                _add(sums_ptr + slot * D + o_d, b_x, o_d < D)
            if HAS_UNIT_SUMS:
                _add(unit_sums_ptr + slot * D + o_d, b_unit, o_d < D)
            if HAS_PRODUCTS:
                b_mean = b_x * scale
                unit_unit += b_unit * b_unit
                unit_mean += b_unit * b_mean
                mean_mean += b_mean * b_mean
                p_totals = totals_ptr + tl.cast(tl.program_id(0), tl.int64) * D + o_d
                _add(p_totals, b_unit, o_d < D)
        if HAS_PRODUCTS:
            p_products = products_ptr + 3 * slot
            tl.store(p_products, tl.load(p_products) + tl.sum(unit_unit, axis=0))
            tl.store(p_products + 1, tl.load(p_products + 1) + tl.sum(unit_mean, axis=0))
            tl.store(p_products + 2, tl.load(p_products + 2) + tl.sum(mean_mean, axis=0))
            tl.debug_barrier()  # what one thread added to the totals, another may read


def group_moments(
    x: Tensor,
    order: Tensor,
    begin: Tensor,
    end: Tensor,
    slot: Tensor,
    counts: Tensor,
    square_norms: Tensor,
    sums: Tensor | None,
    unit_sums: Tensor | None,
    products: Tensor | None,
    totals: Tensor | None,
    scale: float,
) -> None:
    """Adds the moments of every run, rows order[begin[s]], …, order[end[s] − 1], to group slot[s].

    x̂ = x/‖x‖. Non-finite rows are left out, zero rows have no direction.

    Args:
        x: Rows, shape [n, d], float64/float32/float16/bfloat16, columns side by side.
        order: Row numbers, int64, group by group.
        begin: First position of each run in `order`, int64 [S].
        end: The position after its last.
        slot: Its group, int64 [S]; no two the same.
        counts: int64 [G]: += rows with a direction.
        square_norms: float64 [G]: += Σ‖x‖².
        sums: float64 [G, d], contiguous: += Σx; or None.
        unit_sums: float64 [G, d], contiguous: += Σx̂; or None.
        products: float64 [G, 3]: += ‖ŝ‖², ŝ·m, ‖m‖² of ŝ = Σx̂ and m = scale·Σx; or None.
        totals: float64 [W, d], contiguous, with products: += Σx̂ of all runs, split over W programs.
        scale: Power of two that keeps the squares of m in range.

    Time O(n d), two reads of x; memory 24 bytes per row. Accumulates in float64, in an order fixed
    by the runs and d.
    """
    n, d = x.shape
    if len(order) == 0 or len(slot) == 0:
        return
    config = group_moments_config(d)
    codes = torch.empty(n, dtype=torch.float64, device=x.device)
    notes = torch.empty(n, 2, dtype=torch.float64, device=x.device)
    norms_kernel[(min(triton.cdiv(n, config.block_n), _MOST_PROGRAMS),)](
        x, codes, codes, notes, n, d, x.stride(0), 0,
        HAS_MASK=False, FLOAT64=x.dtype == torch.float64, **config.constants(), **config.options(),
    )  # fmt: skip
    most = min(len(slot), _MOST_PROGRAMS)
    counts_kernel[(most,)](
        order, begin, end, slot, codes, counts, square_norms, len(slot),
        **GROUP_COUNTS.constants(), **GROUP_COUNTS.options(),
    )  # fmt: skip
    outputs = (codes if out is None else out for out in (sums, unit_sums, products, totals))
    runs_kernel[(most if totals is None else min(len(slot), len(totals)),)](
        x, order, begin, end, slot, notes, codes.new_full((1,), scale), *outputs,
        len(slot), d, x.stride(0),
        HAS_SUMS=sums is not None, HAS_UNIT_SUMS=unit_sums is not None,
        HAS_PRODUCTS=products is not None, FLOAT64=x.dtype == torch.float64,
        **config.constants(), **config.options(),
    )  # fmt: skip


_ROWS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
}
_TYPES = dict.fromkeys(("order_ptr", "begin_ptr", "end_ptr", "slot_ptr", "counts_ptr"), "*i64")
_TYPES |= dict.fromkeys(("codes_ptr", "notes_ptr", "scale_ptr", "square_norms_ptr"), "*fp64")
_TYPES |= dict.fromkeys(("sums_ptr", "unit_sums_ptr", "products_ptr", "totals_ptr"), "*fp64")
_TYPES |= {"mask_ptr": "*fp64", "stride_mask": "i32", "N": "i64", "S": "i64", "D": "i32"}
_TYPES |= {"stride_x": "i64"}


def aot_cases() -> list[AotCase]:
    """Every kernel × launch configuration × dtype × kind of output of `group_moments`."""
    kinds = ((norms_kernel, False), (runs_kernel, False), (runs_kernel, True))
    return [_case(counts_kernel, torch.float64, GROUP_COUNTS, False)] + [
        _case(kernel, dtype, config, products)
        for dtype in _ROWS
        for config in GROUP_TILES
        for kernel, products in kinds
    ]


def _case(kernel: Any, dtype: torch.dtype, config: LaunchConfig, products: bool) -> AotCase:
    types = _TYPES | {"x_ptr": _ROWS[dtype]}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    flags = {"HAS_SUMS": not products, "HAS_UNIT_SUMS": not products, "HAS_PRODUCTS": products}
    flags |= {"HAS_MASK": False, "FLOAT64": dtype == torch.float64}
    known = config.constants() | flags
    constants = {name: known[name] for name, kind in signature.items() if kind == "constexpr"}
    kind = "products" if products else "sums"
    tile = "x".join(map(str, config.constants().values()))
    name = f"{kernel.fn.__name__} of groups {dtype} {kind} {tile}"
    return AotCase(name, kernel, signature, constants, config.options())
