"""Reads of a file into memory that is used again, past the page cache where it holds nothing."""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from aniso.errors import InputError

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path
    from types import TracebackType

    from torch import Tensor

# What every disk and file system takes as the unit of reads past the page cache.
PAGE = 4096
# Eight of them fill a block: enough under way for the disk, each long enough for its full rate.
PIECE_BYTES = 1 << 22


class Scratch:
    """Memory that one block after another is read into, and the threads that fill it.

    Args:
        threads: Who reads the pieces of a block.
    """

    def __init__(self, threads: Executor) -> None:
        self.threads = threads
        self._memory = torch.empty(0, dtype=torch.uint8)

    def pages(self, size: int) -> Tensor:
        """So many bytes from a page boundary on; they overwrite those before."""
        if self._memory.numel() < size + PAGE:
            self._memory = torch.empty(size + PAGE, dtype=torch.uint8)
        begin = -self._memory.data_ptr() % PAGE
        return self._memory[begin : begin + size]


class FileReads:
    """A file opened twice: through the page cache, and past it.

    Reading past the cache leaves the processor to the kernels (a tenth of the time of a copy out
    of the cache) and the cache to others; what lies in the cache already is faster from there.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cached = os.open(path, os.O_RDONLY)
        self._direct: int | None = None
        if hasattr(os, "O_DIRECT"):
            try:
                self._direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
            except OSError:
                # A file system in memory has no other way than its cache.
                self._direct = None

    def __enter__(self) -> FileReads:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._cached)
        if self._direct is not None:
            os.close(self._direct)

    def fill(self, memory: memoryview, offset: int, needed: int) -> None:
        """Fills the memory from the offset on; the file may end after the bytes needed.

        Raises:
            InputError: it ends before.
            OSError: it cannot be read.
        """
        done = 0
        while done < needed:
            count = self._read(memory[done:], offset + done)
            if count == 0:
                raise _cut(self.path, os.fstat(self._cached).st_size)
            done += count

    def _read(self, memory: memoryview, offset: int) -> int:
        whole_pages = offset % PAGE == 0 and len(memory) % PAGE == 0
        if self._direct is None or not whole_pages or in_cache(self._cached, offset, len(memory)):
            return os.preadv(self._cached, [memory], offset)
        try:
            return os.preadv(self._direct, [memory], offset)
        except OSError:
            # A disk of larger sectors; should it be another error, this meets it again.
            return os.preadv(self._cached, [memory], offset)


def refuse_cut(path: Path, size: int) -> None:
    """Tells why a library failed that was in the middle of a file.

    Raises:
        InputError: the file has fewer bytes than when it was opened, or is gone.
    """
    try:
        left = path.stat().st_size
    except OSError as error:
        raise InputError(
            f"{path} has gone while it was read; bring it back and run again"
        ) from error
    if left < size:
        raise _cut(path, left)


def _cut(path: Path, end: int) -> InputError:
    return InputError(
        f"{path} ends at byte {end}, inside its rows: it was cut while it was read; put the whole "
        "file back and run again"
    )


def in_cache(file: int, offset: int, size: int) -> bool:
    """Whether most of these bytes lie in the page cache; nothing is read to know it.

    True as well where the system does not say: of files that the user may not write.
    """
    size = min(size, os.fstat(file).st_size - offset)
    if size <= 0:
        return True
    with mmap.mmap(file, size, prot=mmap.PROT_READ, offset=offset) as mapped:
        view = np.frombuffer(mapped, dtype=np.uint8)
        resident = np.ones(-(-size // PAGE), dtype=np.uint8)
        _libc().mincore(
            ctypes.c_void_p(view.ctypes.data),
            ctypes.c_size_t(size),
            ctypes.c_void_p(resident.ctypes.data),
        )
        # The mapping cannot be closed while it is viewed.
        del view
    return 2 * int((resident & 1).sum()) > len(resident)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def read_pages(path: Path, begin: int, size: int, scratch: Scratch) -> Tensor:
    """Bytes [begin, begin + size) of a file, in the scratch, by several large reads at once.

    Raises:
        InputError: the file ends before.
        OSError: it cannot be read.
    """
    ahead = begin % PAGE
    pages = scratch.pages(-(-(ahead + size) // PAGE) * PAGE)
    memory = memoryview(pages.numpy().data)
    with FileReads(path) as file:
        reads = [
            scratch.threads.submit(
                file.fill,
                memory[i : i + PIECE_BYTES],
                begin - ahead + i,
                min(PIECE_BYTES, ahead + size - i),
            )
            for i in range(0, len(memory), PIECE_BYTES)
        ]
        errors = [error for error in (read.exception() for read in reads) if error is not None]
    if errors:
        raise errors[0]
    return pages[ahead : ahead + size]
