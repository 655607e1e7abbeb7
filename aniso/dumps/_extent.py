"""Rows at known places of a file, read by large preads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch

from aniso.errors import InputError

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future
    from pathlib import Path

    from torch import Tensor

# Eight of them fill a block: enough in flight for the disk, each long enough for its full rate.
_READ_BYTES = 1 << 22


class Scratch:
    """Memory that one block after another is read into, and the threads that fill it.

    Args:
        threads: Who reads the pieces of a block.
    """

    def __init__(self, threads: Executor) -> None:
        self.threads = threads
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An array in this memory; it overwrites the one before."""
        size = prod(shape) * dtype.itemsize
        if self._bytes.numel() < size:
            self._bytes = torch.empty(size, dtype=torch.uint8)
        return self._bytes[:size].view(dtype).view(shape)


@dataclass(frozen=True)
class Extent:
    """Rows of a file: row i begins at byte offset + i * stride.

    Attributes:
        path: The file.
        offset: Where the first row begins.
        dim: Values per row; 0 for a vector, whose rows are single values.
        dtype: Their dtype.
        stride: Bytes from one row to the next. Default: they are adjacent.
        swapped: Whether the bytes of a value are in the other order than this machine's.
    """

    path: Path
    offset: int
    dim: int
    dtype: torch.dtype
    stride: int = 0
    swapped: bool = False

    def read(self, start: int, stop: int, scratch: Scratch | None = None) -> Tensor:
        """Rows [start, stop), in new memory or in the scratch.

        Raises:
            InputError: the file ends before them, or cannot be read.
        """
        shape = (stop - start, self.dim) if self.dim else (stop - start,)
        empty = scratch.empty if scratch else _new
        rows = empty(shape, self.dtype)
        if rows.numel():
            flat = rows.view(-1).view(torch.uint8).numpy().data
            self._fill(flat, start, scratch.threads if scratch else None)
        if self.swapped:
            rows.view(_INTEGERS[self.dtype.itemsize]).numpy().byteswap(inplace=True)
        return rows

    def _fill(self, memory: memoryview, start: int, threads: Executor | None) -> None:
        width = max(1, self.dim) * self.dtype.itemsize
        stride = self.stride or width
        begin, step = self.offset + start * stride, _READ_BYTES if stride == width else width
        pieces = [
            (begin + (i // width * stride if stride != width else i), memory[i : i + step])
            for i in range(0, len(memory), step)
        ]
        try:
            with self.path.open("rb", buffering=0) as file:
                self._read_pieces(file.fileno(), pieces, threads if stride == width else None)
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be read ({error.strerror}); mend it and run again"
            ) from error

    def _read_pieces(
        self, file: int, pieces: list[tuple[int, memoryview]], threads: Executor | None
    ) -> None:
        if threads is None or len(pieces) == 1:
            for offset, memory in pieces:
                self._read_piece(file, offset, memory)
            return
        reads: list[Future[None]] = [
            threads.submit(self._read_piece, file, *piece) for piece in pieces
        ]
        errors = [read.exception() for read in reads]
        for error in errors:
            if error is not None:
                raise error

    def _read_piece(self, file: int, offset: int, memory: memoryview) -> None:
        done = 0
        while done < len(memory):
            count = os.preadv(file, [memory[done:]], offset + done)
            if count == 0:
                raise InputError(
                    f"{self.path} ends at byte {offset + done}, inside its rows: it was cut while "
                    "it was read; put the whole file back and run again"
                )
            done += count


_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def _new(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)
