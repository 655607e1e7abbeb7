"""Tiles of matrices and of triangles, for kernels that multiply rows with rows."""

# Functions under @triton.jit are Triton's language, without Python types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

if TYPE_CHECKING:
    from torch import Tensor

_INTERPRETED_PROGRAMS = 3  # in Triton's interpreter: more than one, fewer than the tiles
_ALIGNMENT = 16  # bytes, of a tensor map's base and strides


FLOAT64_DOTS = (80, 90) if triton.__version__.startswith("3.6.") else (80, 90, 100)
"""Compute capabilities for which this Triton compiles dots of float64 (3.6 fails on 10.0)."""


@triton.jit
def lower_triangle(i_tile):
    """Row i and column j <= i of the tile'th tile, counted row by row; 64-bit."""
    i_tile = tl.cast(i_tile, tl.int64)
    root = (tl.sqrt(8.0 * i_tile.to(tl.float64) + 1.0) - 1.0) * 0.5
    i = root.to(tl.int64)
    # The root of a large number may be rounded to either side of a whole one.
    i = tl.where(i * (i + 1) // 2 > i_tile, i - 1, i)
    i = tl.where((i + 1) * (i + 2) // 2 <= i_tile, i + 1, i)
    return i, i_tile - i * (i + 1) // 2


@triton.jit
def load_tile(
    source, stride, i_n, i_d, N, D,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DESCRIPTOR: tl.constexpr,
):  # fmt: skip
    """A tile [ROWS, COLUMNS] at row i_n, column i_d of a matrix [N, D]; zeros outside."""
    if DESCRIPTOR:
        b_x = source.load([tl.cast(i_n, tl.int32), tl.cast(i_d, tl.int32)])
    else:
        o_n = tl.cast(i_n, tl.int64) + tl.arange(0, ROWS)
        o_d = i_d + tl.arange(0, COLUMNS)
        p_x = source + o_n[:, None] * stride + o_d[None, :]
        b_x = tl.load(p_x, mask=(o_n < N)[:, None] & (o_d < D)[None, :], other=0.0)
    return b_x


@triton.jit
def halves(b_x):
    """The left and the right half of the columns, which stay in the same threads' registers."""
    ROWS: tl.constexpr = b_x.shape[0]
    COLUMNS: tl.constexpr = b_x.shape[1]
    return tl.split(tl.permute(tl.reshape(b_x, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))


def tile_source(
    matrix: Tensor, rows: int, columns: int, *, descriptors: bool
) -> Tensor | TensorDescriptor:
    """What `load_tile` reads tiles [rows, columns] of a matrix [n, d] from."""
    if not descriptors:
        return matrix
    return TensorDescriptor(matrix, list(matrix.shape), [matrix.stride(0), 1], [rows, columns])


def fits_descriptor(matrix: Tensor) -> bool:
    """Whether a tensor map can describe the matrix: 16-byte base and row stride, 32-bit rows."""
    stride_bytes = matrix.stride(0) * matrix.element_size()
    aligned = matrix.data_ptr() % _ALIGNMENT == 0 and stride_bytes % _ALIGNMENT == 0
    return aligned and stride_bytes < 2**40 and matrix.shape[0] < 2**31


def descriptor_type(dtype: str, rows: int, columns: int) -> str:
    """Triton's name of the type of `tile_source`'s descriptor, for compilation ahead of time."""
    return f"tensordesc<{dtype}[{rows},{columns}]>"


def capability(device: torch.device) -> int:
    """10 × major + minor of a GPU's compute capability; 0 in Triton's interpreter."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def multiplies_float64(device: torch.device) -> bool:
    """Whether this Triton compiles dots of float64 for the GPU; compiled are FLOAT64_DOTS."""
    return capability(device) // 10 in {dots // 10 for dots in (0, *FLOAT64_DOTS)}


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; a few in Triton's interpreter."""
    if device.type != "cuda":
        return _INTERPRETED_PROGRAMS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
