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
