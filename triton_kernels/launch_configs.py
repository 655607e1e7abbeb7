"""Launch parameters of the Triton kernels, each threshold with its reason.

"Estimated" marks a choice derived from sizes, not from a measurement.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LaunchConfig:
    """What every launch has: warps per program, and pipeline stages.

    Attributes:
        num_warps: Warps per program.
        num_stages: Tiles in flight through shared memory, in kernels that pipeline their loads.
    """

    num_warps: int
    num_stages: int = 1

    def options(self) -> dict[str, Any]:
        """The keyword arguments of a launch that are not the kernel's own."""
        # Explicit, because its default changes from on to off in Triton 3.10.
        return {"num_warps": self.num_warps, "enable_fp_fusion": True}

    def constants(self) -> dict[str, Any]:
        """The kernel's compile-time arguments: every `block_*` field."""
        fields = asdict(self).items()
        return {k.upper(): v for k, v in fields if k.startswith("block_")}


@dataclass(frozen=True, kw_only=True)
class RowMomentsConfig(LaunchConfig):
    """How `row_moments` maps rows [n, d] to programs.

    Attributes:
        block_n: Rows of a program's tile.
        block_d: Columns of a program's tile, a power of two.
        programs_per_sm: Persistent programs per multiprocessor.
    """

    block_n: int
    block_d: int
    programs_per_sm: int


@dataclass(frozen=True, kw_only=True)
class TallyConfig(LaunchConfig):
    """How codes of rows are tallied: `block_n` at a time."""

    block_n: int


@dataclass(frozen=True, kw_only=True)
class FoldConfig(LaunchConfig):
    """How partial sums [programs, width] are folded: `block_p` partials × `block_j` values."""

    block_p: int
    block_j: int


@dataclass(frozen=True, kw_only=True)
class GroupMomentsConfig(LaunchConfig):
    """How `group_moments` takes rows of one run: tiles of `block_n` rows × `block_d` columns."""

    block_n: int
    block_d: int


@dataclass(frozen=True, kw_only=True)
class ElementsConfig(LaunchConfig):
    """How an elementwise pass maps rows [n, d] to programs: tiles of `block_n` × `block_d`."""

    block_n: int
    block_d: int


@dataclass(frozen=True, kw_only=True)
class StripsConfig(LaunchConfig):
    """How tiles are folded: strips of `block_n` of their rows."""

    block_n: int


@dataclass(frozen=True, kw_only=True)
class GramConfig(LaunchConfig):
    """How `gram` maps XᵀX to programs: a tile of the lower triangle each, over a share of the rows.

    Attributes:
        block_d: Side of the tile of XᵀX.
        block_n: Rows per dot.
        promote_dots: Dots that meet in one tensor-core accumulator.
        span_dots: Dots whose promoted sums meet in float32 before they go to float64.
        parts: Column parts in which a tile goes to float64, so that few values are live at once.
        descriptors: Tiles are read through tensor maps (TMA) instead of pointers.
    """

    block_d: int
    block_n: int
    promote_dots: int = 0
    span_dots: int = 0
    parts: int = 4
    descriptors: bool = False


@dataclass(frozen=True, kw_only=True)
class PairsConfig(LaunchConfig):
    """How `pair_histogram` maps pairs of rows to programs: persistent, a tile of cosines at a time.

    Attributes:
        block_n: Rows of a tile.
        block_m: Columns of a tile, rows of b.
        block_d: Dimensions per dot.
        promote_dots: Dots that meet in one tensor-core accumulator; 0: all.
        parts: Column parts in which a tile is binned, so that few values are live at once.
        descriptors: Tiles are read through tensor maps (TMA) instead of pointers.
        defer: Count a tile's bin numbers during the next tile's dots.
    """

    block_n: int
    block_m: int
    block_d: int
    promote_dots: int = 0
    parts: int = 1
    descriptors: bool = False
    defer: bool = True


@dataclass(frozen=True, kw_only=True)
class BinsConfig(LaunchConfig):
    """How bins [programs, bins] are folded: `block_j` bins at a time."""

    block_j: int


# A thread keeps 4 float64 sums per element of its tile: 64 of the 128 registers it may have at 16
# warps per multiprocessor. With 16 elements, or two rows per step, the compiled kernels spill, so
# 4096 columns are the widest row that one program can read once.
PER_THREAD = 8
ONE_READ_COLUMNS = 4096

# Tiles of wider rows, which are read twice: small ones, because 8 elements per thread spill where
# the tile is float64.
TILE_COLUMNS, TILE_PER_THREAD = 1024, 4

# Half the register file per program keeps a second one running during a reduction (estimated).
SMALL_WARPS = 8

# Fewer columns cost little time, and every width more is one more kernel to compile (estimated).
MIN_BLOCK_D = 64


def row_moments_config(d: int, element_bytes: int) -> RowMomentsConfig:
    """The launch for rows of `d` columns, or for their tiles where d > ONE_READ_COLUMNS."""
    wide = d > ONE_READ_COLUMNS
    block_d = max(MIN_BLOCK_D, 1 << ((TILE_COLUMNS if wide else d) - 1).bit_length())
    large = block_d > SMALL_WARPS * 32 * PER_THREAD
    num_warps = 2 * SMALL_WARPS if large else SMALL_WARPS
    return RowMomentsConfig(
        block_n=num_warps * 32 * (TILE_PER_THREAD if wide else PER_THREAD) // block_d,
        block_d=block_d,
        num_warps=num_warps,
        num_stages=8 // element_bytes + 1,  # about 64 KiB in flight per multiprocessor (estimated)
        programs_per_sm=16 // num_warps,
    )


# Codes are 8 bytes per row, small beside x: any size that fills a program (estimated).
TALLIES = TallyConfig(num_warps=4, block_n=256)

# One value per thread and partial row, so that a line of partials is read whole (estimated).
FOLD = FoldConfig(num_warps=4, block_p=8, block_j=128)

# Runs of rows are short as a rule, and a tile's rows beyond the end of a run lie idle: few rows. A
# thread has 8 elements with two float64 sums each, which leaves registers for products (estimated).
GROUP_TILES = (
    GroupMomentsConfig(num_warps=4, block_n=8, block_d=128),
    GroupMomentsConfig(num_warps=4, block_n=2, block_d=512),
)

# Runs are short as a rule: one warp per run (estimated).
GROUP_COUNTS = TallyConfig(num_warps=1, block_n=32)


def group_moments_config(d: int) -> GroupMomentsConfig:
    """The launch for rows of `d` columns."""
    narrow, wide = GROUP_TILES
    return narrow if d <= narrow.block_d else wide


# 16 values per thread, in and out as lines of 128 bytes and more (estimated).
PLANES = ElementsConfig(num_warps=8, block_n=8, block_d=512)
COLUMN_MAX = ElementsConfig(num_warps=8, block_n=8, block_d=512, num_stages=3)

# Tensor cores truncate when they add: 32 steps of 16 rows cost 7e-7 of a sum of equal signs, and
# the error grows with the steps. 8 dots of 64 rows are 32 steps.
PROMOTE_DOTS = 8

# 64 promoted sums, rounded to nearest, lose less in float32 (2e-7) than one promotion truncates.
# Writing float64 sums takes about 10,000 of a span's 260,000 cycles (estimated for an H200).
SPAN_DOTS = 64 * PROMOTE_DOTS

NARROW_COLUMNS = 64


def gram_config(d: int, element_bytes: int, capability: int) -> GramConfig:
    """The launch for rows of `d` columns; capability is 10 × major + minor, 0 for no GPU.

    A thread of the tile 128 × 128 holds 64 accumulators and 64 promoted sums, with 8 warps. A tile
    of 128 × 256 would read a third less from L2, but leaves no registers for the promoted sums.
    Two float32 sums in place of SPAN_DOTS (TwoSum) would cost 7 additions per promotion, not 1.
    """
    if element_bytes == 8:
        # 64 × 64 float64 accumulators are 64 registers per thread; 128 × 128 spill.
        return GramConfig(num_warps=4, num_stages=3, block_d=64, block_n=16)
    narrow = d <= NARROW_COLUMNS
    return GramConfig(
        num_warps=4 if narrow else 8,
        # 32 KiB per stage; SMs of compute capability 8.6 and 12.0 have 99 KiB, 9.0 and 10.0 227.
        num_stages=5 if 90 <= capability < 120 else 2,
        block_d=64 if narrow else 128,
        block_n=64,
        promote_dots=PROMOTE_DOTS,
        span_dots=SPAN_DOTS,
        descriptors=capability >= 90,
    )


# Programs per SM that split-K aims at: enough to even out the last wave (estimated).
GRAM_WAVES = 4

# 16 float64 values per thread of a strip 16 × 128 (estimated).
GRAM_FOLD = StripsConfig(num_warps=4, block_n=16)

# Squares of 2048 × 2048 pairs are one wave of tiles, and their rows (32 MiB at d = 4096 in float16)
# stay in an L2 of 60 MB; a line of tiles as long would read all rows anew per wave.
PAIR_MACRO_ROWS = 2048

# Codes counted per dot, the fewest that get through a tile in time: 512 are 2 per thread, and hide
# behind a dot; 8192 take about twice a dot's time, and with fewer dots the tile is made smaller.
PAIR_CHUNKS = (512, 1024, 2048, 4096, 8192)

# From here on the codes of a tile of 128 × 256 can be counted during its 4 dots and more.
PAIR_WIDE_COLUMNS = 256


def pairs_config(d: int, element_bytes: int, capability: int) -> PairsConfig:
    """The launch for rows of `d` columns; capability as in `gram_config`.

    On Hopper, a tile of 128 × 256 reads 0.75 of the bytes per product that 128 × 128 would, which
    L2 could not deliver at full rate, and fills half of the registers; 4 stages of 48 KiB and 33
    KiB of bins are 225 of 227 KiB. float32 rows need promoted sums beside the accumulators: half
    the tile. So do rows with too few columns for the codes to be counted meanwhile, and Blackwell:
    the compiled kernels spill otherwise. Elsewhere 64 KiB of tiles and the bins fit in every SM's
    99 KiB (Triton asks for more than 48 KiB only when tiles alone need it).
    """
    if element_bytes == 8:
        return PairsConfig(
            num_warps=4, num_stages=5, block_n=64, block_m=64, block_d=16, parts=16, defer=False
        )
    if not 90 <= capability < 120:
        return PairsConfig(
            num_warps=8, num_stages=5, block_n=128, block_m=128, block_d=32,
            promote_dots=2 * PROMOTE_DOTS, parts=8,
        )  # fmt: skip
    if element_bytes == 2 and d >= PAIR_WIDE_COLUMNS and capability < 100:
        return PairsConfig(
            num_warps=8, num_stages=4, block_n=128, block_m=256, block_d=64, parts=8,
            descriptors=True,
        )  # fmt: skip
    return PairsConfig(
        num_warps=8, num_stages=5, block_n=128, block_m=128, block_d=64,
        promote_dots=PROMOTE_DOTS, parts=8, descriptors=True, defer=capability < 100,
    )  # fmt: skip


# 256 bins per program, two lines of memory per warp and partial (estimated).
PAIR_FOLD = BinsConfig(num_warps=4, block_j=256)
