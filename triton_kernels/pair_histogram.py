"""Histogram of the cosines of all pairs of rows, a tile of cosines at a time; never N × N.

A persistent program multiplies a tile of rows with a tile of rows (float16 pieces, see planes.py),
turns the products into bin numbers, and counts them in bins of its own; a last kernel adds the
programs' bins. For N = 131072, d = 4096 on an H200 the products alone take 89 ms, and the goal is
110: what else a tile of 128 × 256 needs has to fit into a fifth of its 65,000 to 80,000 cycles.

    bins       In shared memory (see shared_bins.py): lanes that hit one bin are counted in one go,
               so that a narrow distribution is the fast case; a broad one costs about 4 bank
               conflicts per warp, some 7,000 cycles per tile.
    counting   One tile late: bin numbers go to a scratch of 64 KiB per program, which stays in L2,
               and are counted while the tensor cores work on the next tile. What is left between
               tiles is 10 instructions per pair and thread, some 4,000 cycles.
    not taken  `tl.histogram` takes a popcount per 32 bins and 32 values: at 2048 bins twice the
               time of the products. Atomics in global memory are one L2 operation per pair, 50 ms
               at best, and a narrow distribution queues up; they are left for more bins than
               shared memory holds, in a workspace per program.
"""

# Functions under @triton.jit are Triton's language, without Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from .aot import AotCase, aot_case
from .launch_configs import (
    PAIR_CHUNKS,
    PAIR_FOLD,
    PAIR_MACRO_ROWS,
    PAIR_WIDE_COLUMNS,
    PairsConfig,
    pairs_config,
)
from .planes import plane_width, row_planes
from .shared_bins import SHARED_BINS, close_bins, count, count_codes, open_bins
from .tiles import (
    FLOAT64_DOTS,
    capability,
    descriptor_type,
    halves,
    load_tile,
    lower_triangle,
    multiprocessors,
    tile_source,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

_CODES_16 = 2**16 - 3  # bins whose codes, two ends and "left out" included, fit in 16 bits
_MOST_COUNTS = 2**31 - 1  # of one program's bins between two folds

INF: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def _tile_at(
    i_tile, N, M, SYMMETRIC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    MACRO_ROWS: tl.constexpr,
):  # fmt: skip
    """First row and column of a tile; tiles are grouped to squares whose rows stay in L2."""
    HIGH: tl.constexpr = MACRO_ROWS // BLOCK_N
    AREA: tl.constexpr = HIGH * (MACRO_ROWS // BLOCK_M)
    i_tile = tl.cast(i_tile, tl.int64)
    i_macro = i_tile // AREA
    i_in = (i_tile % AREA).to(tl.int32)
    if SYMMETRIC:
        i_right, i_down = lower_triangle(i_macro)
    else:
        side = tl.cast(tl.cdiv(N, MACRO_ROWS), tl.int64)
        i_right = i_macro // side
        i_down = i_macro % side
    i_n = i_down.to(tl.int32) * MACRO_ROWS + i_in % HIGH * BLOCK_N
    i_m = i_right.to(tl.int32) * MACRO_ROWS + i_in // HIGH * BLOCK_M
    wanted = (i_n < N) & (i_m < M)
    if SYMMETRIC:
        wanted = wanted & (i_n < i_m + BLOCK_M - 1)
    return i_n, i_m, wanted


@triton.jit
def _bin_parts(
    b_dots, b_row, p_column, b_range, extremes, base, p_bins, p_codes, BINS,
    FULL: tl.constexpr, SHARED: tl.constexpr, DEFER: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Bins a tile of products, PARTS columns' parts in turn; pairs left out are NaN."""
    ROWS: tl.constexpr = b_dots.shape[0]
    COLUMNS: tl.constexpr = b_dots.shape[1]
    if PARTS > 1:
        b_left, b_right = halves(b_dots)
        extremes = _bin_parts(
            b_left, b_row, p_column, b_range, extremes, base, p_bins, p_codes, BINS,
            FULL, SHARED, DEFER, PARTS // 2,
        )  # fmt: skip
        extremes = _bin_parts(
            b_right, b_row, p_column + COLUMNS // 2, b_range, extremes, base, p_bins,
            p_codes + ROWS * COLUMNS // 2, BINS, FULL, SHARED, DEFER, PARTS // 2,
        )  # fmt: skip
    else:
        b_v = b_dots * tl.load(p_column + tl.arange(0, COLUMNS))[None, :]
        extremes = _widened(extremes, b_v, b_row)
        b_code = _codes(b_v, b_row, b_range, BINS, FULL)
        if DEFER:
            o_code = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
            tl.store(p_codes + o_code, b_code.to(p_codes.dtype.element_ty))
        else:
            count(base, p_bins, b_code, SHARED)
    return extremes


@triton.jit
def _widened(extremes, b_v, b_row):
    """Least and greatest cosine per row so far; Triton's minimum and maximum pass over NaN."""
    low, high = extremes
    b_low = tl.min(b_v, axis=1) * b_row
    b_high = tl.max(b_v, axis=1) * b_row
    low = tl.minimum(low, tl.where(b_low == b_low, b_low, INF))
    high = tl.maximum(high, tl.where(b_high == b_high, b_high, -INF))
    return low, high


@triton.jit
def _codes(b_v, b_row, b_range, BINS, FULL: tl.constexpr):
    """Bin numbers from 0, BINS below low, BINS + 1 above high, BINS + 2 for pairs left out."""
    low, high, bins_per_one = b_range
    b_bin = b_v * (b_row * bins_per_one)[:, None] - low * bins_per_one
    # Truncation takes what rounding left below the first bin; high itself is in the last.
    b_code = tl.minimum(b_bin.to(tl.int32), BINS - 1)
    if not FULL:
        b_cos = tl.minimum(tl.maximum(b_v * b_row[:, None], -1.0), 1.0)
        b_code = tl.where(b_cos < low, BINS, tl.where(b_cos > high, BINS + 1, b_code))
    return tl.where(b_bin == b_bin, b_code, BINS + 2)


@triton.jit
def _products(
    a, b, i_n, i_m, width, a_rows, b_rows, a_plane, b_plane, base, p_bins, p_codes,
    PRODUCTS: tl.constexpr, FLOAT: tl.constexpr, SHARED: tl.constexpr, CHUNK: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PROMOTE_DOTS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """A tile of a bᵀ; the codes of the last tile are counted meanwhile, CHUNK per dot."""
    b_acc = tl.zeros([BLOCK_N, BLOCK_M], FLOAT)
    b_total = tl.zeros([BLOCK_N, BLOCK_M], FLOAT)
    for i_dot in tl.range(0, width // BLOCK_D * PRODUCTS, num_stages=NUM_STAGES):
        i_d = i_dot // PRODUCTS * BLOCK_D
        i_a = i_n
        i_b = i_m
        if PRODUCTS == 3:
            i_a = tl.where(i_dot % 3 == 1, i_n + a_plane, i_n)
            i_b = tl.where(i_dot % 3 == 2, i_m + b_plane, i_m)
        b_a = load_tile(a, width, i_a, i_d, a_rows, width, BLOCK_N, BLOCK_D, DESCRIPTORS)
        b_b = load_tile(b, width, i_b, i_d, b_rows, width, BLOCK_M, BLOCK_D, DESCRIPTORS)
        b_acc = tl.dot(b_a, b_b.T, b_acc, out_dtype=FLOAT)
        if CHUNK > 0:
            if i_dot * CHUNK < BLOCK_N * BLOCK_M:
                count_codes(base, p_bins, p_codes + i_dot * CHUNK, SHARED, CHUNK)
        if PROMOTE_DOTS > 0:
            if i_dot % PROMOTE_DOTS == PROMOTE_DOTS - 1:
                b_total += b_acc
                # Zeros would become a select outside of this branch, where the wgmma still runs.
                b_acc -= b_acc
    return b_acc + b_total if PROMOTE_DOTS > 0 else b_acc


@triton.jit(
    do_not_specialize=["N", "M", "a_rows", "b_rows", "a_plane", "b_plane", "first", "last", "BINS"]
)
def pairs_kernel(
    a, b, row_factors_ptr, column_factors_ptr, range_ptr, codes_ptr, bins_ptr, extremes_ptr,
    N, M, width, a_rows, b_rows, a_plane, b_plane, first, last, BINS,
    PRODUCTS: tl.constexpr, FLOAT: tl.constexpr, SYMMETRIC: tl.constexpr, FULL: tl.constexpr,
    SHARED: tl.constexpr, CHUNK: tl.constexpr, DESCRIPTORS: tl.constexpr,
    PROMOTE_DOTS: tl.constexpr, PARTS: tl.constexpr, MACRO_ROWS: tl.constexpr,
    THREADS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """Bins the cosines of the program's tiles among first .. last - 1."""
    i_p = tl.program_id(0).to(tl.int64)
    base = open_bins(SHARED, THREADS)
    p_bins = bins_ptr + i_p * (BINS + 3)
    p_codes = codes_ptr + i_p * (BLOCK_N * BLOCK_M)
    b_range = _load_range(range_ptr, FLOAT)
    extremes = tl.full([BLOCK_N], INF, FLOAT), tl.full([BLOCK_N], -INF, FLOAT)
    for i_tile in tl.range(tl.cast(first, tl.int64) + i_p, last, tl.num_programs(0)):
        i_n, i_m, wanted = _tile_at(i_tile, N, M, SYMMETRIC, BLOCK_N, BLOCK_M, MACRO_ROWS)
        if wanted:
            if CHUNK > 0:
                tl.debug_barrier()
            b_dots = _products(
                a, b, i_n, i_m, width, a_rows, b_rows, a_plane, b_plane, base, p_bins, p_codes,
                PRODUCTS, FLOAT, SHARED, CHUNK, DESCRIPTORS, PROMOTE_DOTS, BLOCK_N, BLOCK_M,
                BLOCK_D, NUM_STAGES,
            )  # fmt: skip
            if CHUNK > 0:
                tl.debug_barrier()
            o_n = i_n + tl.arange(0, BLOCK_N)
            if SYMMETRIC:
                if i_m < i_n + BLOCK_N:
                    o_m = i_m + tl.arange(0, BLOCK_M)
                    b_dots = tl.where(o_n[:, None] < o_m[None, :], b_dots, float("nan"))
            extremes = _bin_parts(
                b_dots, tl.load(row_factors_ptr + o_n), column_factors_ptr + i_m, b_range,
                extremes, base, p_bins, p_codes, BINS, FULL, SHARED, CHUNK > 0, PARTS,
            )  # fmt: skip
    if CHUNK > 0:
        tl.debug_barrier()
        for i_code in tl.range(0, BLOCK_N * BLOCK_M, CHUNK):
            count_codes(base, p_bins, p_codes + i_code, SHARED, CHUNK)
    close_bins(base, p_bins, BINS + 2, SHARED, THREADS)
    _store_extremes(extremes_ptr + i_p * (2 * BLOCK_N), extremes)


@triton.jit
def _load_range(range_ptr, FLOAT: tl.constexpr):
    """Where bins begin and end, and bins per unit of cosine."""
    low = tl.load(range_ptr).to(FLOAT)
    high = tl.load(range_ptr + 1).to(FLOAT)
    return low, high, tl.load(range_ptr + 2).to(FLOAT)


@triton.jit
def _store_extremes(p_extremes, extremes):
    """Writes the least cosines per row of tiles, then the greatest."""
    low, high = extremes
    ROWS: tl.constexpr = low.shape[0]
    p_extremes += tl.arange(0, ROWS)
    tl.store(p_extremes, low.to(tl.float64))
    tl.store(p_extremes + ROWS, high.to(tl.float64))


@triton.jit(do_not_specialize=["BINS", "programs"])
def fold_kernel(
    bins_ptr, extremes_ptr, counts_ptr, limits_ptr, BINS, programs,
    ROWS: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Adds the programs' bins to the counts, and takes the least and the greatest cosine."""
    o_j = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J)
    o_bin = tl.where(o_j == 0, BINS, tl.where(o_j > BINS, BINS + 1, o_j - 1))
    m_bin = o_j < BINS + 2
    total = tl.zeros([BLOCK_J], tl.int64)
    for i_p in tl.range(0, programs):
        p_bins = bins_ptr + tl.cast(i_p, tl.int64) * (BINS + 3)
        total += tl.load(p_bins + o_bin, mask=m_bin, other=0)
    p_counts = counts_ptr + o_j
    tl.store(p_counts, tl.load(p_counts, mask=m_bin, other=0) + total, mask=m_bin)
    if tl.program_id(0) == 0:
        low = tl.full([ROWS], INF, tl.float64)
        high = tl.full([ROWS], -INF, tl.float64)
        for i_p in tl.range(0, programs):
            p_extremes = extremes_ptr + i_p * (2 * ROWS) + tl.arange(0, ROWS)
            low = tl.minimum(low, tl.load(p_extremes))
            high = tl.maximum(high, tl.load(p_extremes + ROWS))
        least = tl.min(low, axis=0)
        greatest = tl.max(high, axis=0)
        if least <= greatest:
            least = tl.minimum(tl.maximum(least, -1.0), 1.0)
            greatest = tl.minimum(tl.maximum(greatest, -1.0), 1.0)
            tl.store(limits_ptr, tl.minimum(tl.load(limits_ptr), least))
            tl.store(limits_ptr + 1, tl.maximum(tl.load(limits_ptr + 1), greatest))


@dataclass(frozen=True)
class _Side:
    """Rows as the kernel reads them.

    Attributes:
        planes: Pieces [pieces · plane_rows, width], one plane below the other.
        factors: What a piece's row still has to be multiplied with, NaN for rows left out.
        rows: Rows before padding.
        pieces: Planes.
    """

    planes: Tensor
    factors: Tensor
    rows: int
    pieces: int

    @property
    def plane_rows(self) -> int:
        return self.planes.shape[0] // self.pieces

    def source(self, block: int, config: PairsConfig) -> Any:
        """What the kernel reads tiles of `block` rows from."""
        return tile_source(self.planes, block, config.block_d, descriptors=config.descriptors)


@dataclass(frozen=True)
class _Pairs:
    """The pairs to count, and how.

    Attributes:
        left: Rows of a.
        right: Rows of b, or of a again.
        symmetric: Pairs i < j only.
        full: The bins span all cosines.
        limits: float64 [3]: where bins begin and end, and bins per unit of cosine.
        bins: Number of bins.
        config: The launch.
    """

    left: _Side
    right: _Side
    symmetric: bool
    full: bool
    limits: Tensor
    bins: int
    config: PairsConfig

    @property
    def products(self) -> int:
        return 3 if self.left.pieces == 2 else 1

    def tiles(self) -> int:
        """Tiles in whole squares of PAIR_MACRO_ROWS; the kernel passes over those without pairs."""
        n, m = (int(triton.cdiv(s.rows, PAIR_MACRO_ROWS)) for s in (self.left, self.right))
        squares = n * (n + 1) // 2 if self.symmetric else n * m
        per_side = (
            PAIR_MACRO_ROWS // block for block in (self.config.block_n, self.config.block_m)
        )
        return squares * math.prod(per_side)

    def chunk(self) -> int:
        """Codes to count per dot, so that a tile's are through in time; 0: count at once."""
        dots = self.left.planes.shape[1] // self.config.block_d * self.products
        area = self.config.block_n * self.config.block_m
        fitting = [chunk for chunk in PAIR_CHUNKS if chunk * dots >= area]
        return fitting[0] if fitting and self.config.defer else 0


def pair_histogram(
    a: Tensor,
    inverse_a: Tensor,
    b: Tensor | None,
    inverse_b: Tensor | None,
    low: float,
    high: float,
    counts: Tensor,
    extremes: Tensor,
) -> None:
    """Adds the cosines of all pairs i < j of rows of a, or of all rows of a with all rows of b.

    cos = a_i·b_j / (‖a_i‖ ‖b_j‖), clamped to [-1, 1]. Pairs with a row that is left out are not
    counted. Dots accumulate on tensor cores: float16 and bfloat16 rows exactly but for the
    truncation of the sums, at most 2e-9 d of the cosine; float32 rows to 1e-6; float64 in float64.

    Args:
        a: Rows, shape [n, d], float64/float32/float16/bfloat16, columns side by side.
        inverse_a: 1/‖a_i‖, [n], float64 or float32; 0 leaves a row out, whatever it holds.
        b: Rows, shape [m, d], of the dtype of a. Default: pairs within a.
        inverse_b: 1/‖b_j‖, [m], when there is b.
        low: Where the first bin begins.
        high: Where the last bin ends; bins are (high - low)/bins wide.
        counts: int64 [bins + 2], contiguous: += below low, each bin, above high. A cosine on the
            border of two bins is in the upper one, and high itself in the last.
        extremes: float64 [2]: least and greatest cosine so far, +inf and -inf at first.

    Time O(n² d/2) or O(n m d), three times for float32; memory: a copy of the rows (float16, twice
    that for float32), and up to 256 KiB of codes and bins per multiprocessor.
    """
    if a.shape[0] == 0 or (b is not None and b.shape[0] == 0):
        return
    config = pairs_config(a.shape[1], a.element_size(), capability(a.device))
    left = _side(a, inverse_a, config)
    right = left if b is None or inverse_b is None else _side(b, inverse_b, config)
    bins = counts.shape[0] - 2
    limits = torch.tensor([low, high, bins / (high - low)], dtype=torch.float64, device=a.device)
    pairs = _Pairs(left, right, b is None, low <= -1.0 and high >= 1.0, limits, bins, config)
    tiles = pairs.tiles()
    programs = min(tiles, multiprocessors(a.device))
    step = programs * (_MOST_COUNTS // (config.block_n * config.block_m))
    for first in range(0, tiles, step):
        _count_tiles(pairs, (first, min(first + step, tiles)), programs, counts, extremes)


def _side(x: Tensor, inverse_norms: Tensor, config: PairsConfig) -> _Side:
    """Writes the pieces of rows, padded to whole tiles."""
    n, d = x.shape
    padding = max(config.block_n, config.block_m)
    rows, width = triton.cdiv(n, padding) * padding, plane_width(d)
    if x.dtype == torch.float64:
        planes = x.new_zeros(rows, width)
        kept = inverse_norms > 0
        planes[:n, :d] = torch.where(kept[:, None], x * inverse_norms[:, None], 0.0)
        factors = x.new_full((rows,), torch.nan)
        factors[:n].masked_fill_(kept, 1.0)
        return _Side(planes, factors, n, 1)
    pieces = 1 if x.element_size() == 2 else 2
    planes = torch.empty(pieces, rows, width, dtype=torch.float16, device=x.device)
    factors = torch.empty(rows, dtype=torch.float32, device=x.device)
    row_planes(x, inverse_norms, planes, factors)
    return _Side(planes.view(-1, width), factors, n, pieces)


def _count_tiles(
    pairs: _Pairs, span: tuple[int, int], programs: int, counts: Tensor, extremes: Tensor
) -> None:
    """Bins the tiles of a span and folds them into counts and extremes."""
    left, right, config, bins = pairs.left, pairs.right, pairs.config, pairs.bins
    chunk = pairs.chunk()
    area = config.block_n * config.block_m if chunk else 1
    codes = torch.full((programs, area), bins + 2, dtype=torch.int32, device=counts.device)
    codes = codes.to(torch.int16 if bins <= _CODES_16 else torch.int32)
    own_bins = codes.new_zeros(programs, bins + 3, dtype=torch.int32)
    own_extremes = codes.new_empty(programs, 2, config.block_n, dtype=torch.float64)
    pairs_kernel[(programs,)](
        left.source(config.block_n, config), right.source(config.block_m, config),
        left.factors, right.factors, pairs.limits, codes, own_bins, own_extremes,
        left.rows, right.rows, left.planes.shape[1],
        left.planes.shape[0], right.planes.shape[0], left.plane_rows, right.plane_rows,
        *span, bins,
        **_constants(config, pairs.products, left.planes.dtype),
        SYMMETRIC=pairs.symmetric, FULL=pairs.full, CHUNK=chunk,
        # Triton's interpreter knows no PTX.
        SHARED=bins <= SHARED_BINS and codes.is_cuda,
        **config.constants(), **config.options(),
    )  # fmt: skip
    fold_kernel[(triton.cdiv(bins + 2, PAIR_FOLD.block_j),)](
        own_bins, own_extremes, counts, extremes, bins, programs, ROWS=config.block_n,
        **PAIR_FOLD.constants(), **PAIR_FOLD.options(),
    )  # fmt: skip


def _constants(config: PairsConfig, products: int, dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time arguments that follow from the configuration and the pieces."""
    return {
        "PRODUCTS": products,
        "FLOAT": tl.float64 if dtype == torch.float64 else tl.float32,
        "DESCRIPTORS": config.descriptors,
        "PROMOTE_DOTS": config.promote_dots,
        "PARTS": config.parts,
        "MACRO_ROWS": PAIR_MACRO_ROWS,
        "THREADS": 32 * config.num_warps,
        "NUM_STAGES": config.num_stages,
    }


_TYPES = {
    "range_ptr": "*fp64", "bins_ptr": "*i32", "extremes_ptr": "*fp64", "counts_ptr": "*i64",
    "limits_ptr": "*fp64", "N": "i32", "M": "i32", "width": "i32", "a_rows": "i32",
    "b_rows": "i32", "a_plane": "i32", "b_plane": "i32", "first": "i32", "last": "i32",
    "BINS": "i32", "programs": "i32",
}  # fmt: skip


# Pairs within rows or between two sets, bins over all cosines or not, in shared memory or not.
_WAYS = {
    "within": {"SYMMETRIC": True, "FULL": True, "SHARED": True},
    "between": {"SYMMETRIC": False, "FULL": False, "SHARED": True},
    "many bins": {"SYMMETRIC": True, "FULL": False, "SHARED": False},
}


def aot_cases() -> list[AotCase]:
    """Every kernel × launch configuration × way of counting that differs in registers."""
    wide, narrow, few = PAIR_WIDE_COLUMNS, 1, (PAIR_CHUNKS[0], PAIR_CHUNKS[-1])
    plan: list[tuple[int, int, int, Iterable[str], Iterable[int]]] = [
        (2, wide, 90, ("within",), PAIR_CHUNKS),
        (2, wide, 90, ("between", "many bins"), few),
        (4, wide, 90, _WAYS, few),
        (2, narrow, 90, _WAYS, (0,)),
        (4, narrow, 90, ("within",), (0,)),
        (2, narrow, 100, _WAYS, (0,)),
        (4, narrow, 100, ("within",), (0,)),
        (2, narrow, 80, ("within",), (0,)),
        (2, wide, 80, ("within",), few[1:]),
        (4, wide, 80, _WAYS, few[1:]),
        *((8, narrow, capability, _WAYS, (0,)) for capability in FLOAT64_DOTS),
    ]
    cases = [
        _case(size, d, capability, way, chunk)
        for size, d, capability, ways, chunks in plan
        for way in ways
        for chunk in chunks
    ]
    rows = sorted({case.constants["BLOCK_N"] for case in cases})
    folds = [aot_case(f"rows={n}", fold_kernel, _TYPES, {"ROWS": n}, PAIR_FOLD) for n in rows]
    return cases + folds


def _case(element_bytes: int, d: int, capability: int, way: str, chunk: int) -> AotCase:
    config = pairs_config(d, element_bytes, capability)
    dtype = torch.float64 if element_bytes == 8 else torch.float16
    pointer, factor = ("*fp64", "*fp64") if element_bytes == 8 else ("*fp16", "*fp32")
    tiles = {
        name: descriptor_type("fp16", block, config.block_d) if config.descriptors else pointer
        for name, block in (("a", config.block_n), ("b", config.block_m))
    }
    codes = "*i16" if _WAYS[way]["SHARED"] else "*i32"
    types = _TYPES | tiles | dict.fromkeys(("row_factors_ptr", "column_factors_ptr"), factor)
    constants = _constants(config, 3 if element_bytes == 4 else 1, dtype)
    constants |= _WAYS[way] | {"CHUNK": chunk}
    name = f"bytes={element_bytes} chunk={chunk} {way} {capability}"
    return aot_case(
        name, pairs_kernel, types | {"codes_ptr": codes}, constants, config, (capability,)
    )
