"""Rows at known places of a file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from aniso.dumps._file_reads import FileReads, read_pages
from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from aniso.dumps._file_reads import Scratch

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Extent:
    """Rows of a file: row i begins at byte offset + i * stride.

    Attributes:
        path: The file.
        offset: Where the first row begins.
        dim: Values per row; 0 for a vector, whose rows are single values.
        dtype: Their dtype.
        stride: Bytes from one row to the next; 0 when they are adjacent.
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
        width = max(1, self.dim) * self.dtype.itemsize
        stride = self.stride or width
        begin, size = self.offset + start * stride, (stop - start) * width
        try:
            if scratch is not None and stride == width and begin % self.dtype.itemsize == 0:
                flat = read_pages(self.path, begin, size, scratch)
            else:
                flat = self._read_rows(begin, size, width, stride)
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be read ({error.strerror}); mend it and run again"
            ) from error
        rows = flat.view(self.dtype).view(shape)
        if self.swapped:
            rows.view(_INTEGERS[self.dtype.itemsize]).numpy().byteswap(inplace=True)
        return rows

    def columns(self, apart: int) -> Callable[[int, int, Scratch | None], Tensor]:
        """A `read` of rows whose values lie so many bytes apart, with rows that may be closer."""

        def read(start: int, stop: int, scratch: Scratch | None = None) -> Tensor:
            out = torch.empty(stop - start, self.dim, dtype=self.dtype)
            for i in range(self.dim):
                column = replace(self, offset=self.offset + i * apart, dim=0)
                out[:, i] = column.read(start, stop)
            return out

        return read

    def _read_rows(self, begin: int, size: int, width: int, stride: int) -> Tensor:
        """Row after row, or all at once where they are adjacent."""
        flat = torch.empty(size, dtype=torch.uint8)
        memory = memoryview(flat.numpy().data)
        step = width if stride != width else max(1, size)
        with FileReads(self.path) as file:
            for i in range(0, size, step):
                file.fill(memory[i : i + step], begin + i // width * stride, min(step, size - i))
        return flat
