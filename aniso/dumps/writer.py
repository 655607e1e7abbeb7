"""Writing dumps: safetensors files of rows, each complete or not there, and an index at the end."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote

import torch

from aniso._files import partial_path, put_in_place, writable_folder, write_atomic
from aniso.dumps.safetensors import LAYERS_KEY, ROWS_INDEX, STORED_DTYPES
from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from torch import Tensor

# Long enough to be read at a disk's full rate, short enough to copy and to lose.
_SHARD_BYTES = 1 << 29


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What the system says of a failed write, as one sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"rows cannot be written to {folder} ({error.strerror}); make room or choose another "
            "folder, and capture again"
        ) from error


class RowWriter(Protocol):
    """What takes the rows of a capture."""

    def append(self, layer: str, rows: Tensor) -> None:
        """Takes rows [n, d] of a layer."""

    def finish(self) -> None:
        """Called at the end."""

    def abandon(self) -> None:
        """Called instead of `finish` when an exception ended the capture."""


class DumpWriter:
    """Writes rows as they come, a file of one layer after another: `<layer>.00000.safetensors`, ….

    A file has its final size from the first row on and its name when it is whole; the last one of
    a layer is shortened to its rows. `rows.index.json`, written at the end, lists files and rows.

    Args:
        folder: Where the files go; made if need be.
        layers: Names in order of execution; every file states it.
        shard_bytes: A file is whole when its rows reach this size.

    Raises:
        InputError: the folder is not writable, or holds a dump already.

    Memory: none beside the rows that are given.
    """

    def __init__(
        self, folder: str | Path, layers: Sequence[str], *, shard_bytes: int = _SHARD_BYTES
    ) -> None:
        self.folder = Path(folder)
        if any(self.folder.glob("*.safetensors")):
            raise InputError(f"folder {folder} holds a dump already; choose another one")
        writable_folder(self.folder)
        self._layers = list(layers)
        self._shard_bytes = shard_bytes
        self._open: dict[str, _Shard] = {}
        self._kinds: dict[str, tuple[int, torch.dtype]] = {}
        self._whole: dict[str, list[int]] = {name: [] for name in layers}

    def append(self, layer: str, rows: Tensor) -> None:
        """Writes rows [n, d] of a layer.

        Raises:
            InputError: they are unlike those before in width or dtype, or the disk is full.
        """
        self._refuse_unlike(layer, rows)
        values = rows.detach().to("cpu").contiguous()
        done = 0
        while done < len(values):
            shard = self._shard_of(layer, values)
            count = min(len(values) - done, shard.capacity - shard.rows)
            with _told(self.folder):
                shard.write(values[done : done + count])
            done += count
            if shard.rows == shard.capacity:
                self._end(layer)

    def finish(self) -> None:
        """Shortens the files that are open to their rows, and writes the index."""
        try:
            for layer in list(self._open):
                self._end(layer)
            if any(self._whole.values()):
                with _told(self.folder):
                    write_atomic(self.folder / ROWS_INDEX, json.dumps(self._index()).encode())
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Removes the files that are not whole; the others stay, without an index."""
        for shard in self._open.values():
            shard.remove()
        self._open.clear()

    def _refuse_unlike(self, layer: str, rows: Tensor) -> None:
        kind = rows.shape[1], rows.dtype
        known = self._kinds.setdefault(layer, kind)
        if kind != known:
            raise InputError(
                f"layer {layer} gave rows of {kind[0]} × {kind[1]} after rows of {known[0]} × "
                f"{known[1]}; a dump holds one kind, save such layers apart"
            )

    def _shard_of(self, layer: str, rows: Tensor) -> _Shard:
        if layer not in self._open:
            path = self.folder / self._name(layer, len(self._whole[layer]))
            with _told(self.folder):
                self._open[layer] = _Shard(path, layer, self._layers, rows, self._shard_bytes)
        return self._open[layer]

    def _index(self) -> dict[str, Any]:
        whole = {name: counts for name, counts in self._whole.items() if counts}
        files = [self._name(name, i) for name, counts in whole.items() for i in range(len(counts))]
        return {"rows": {name: sum(counts) for name, counts in whole.items()}, "files": files}

    def _end(self, layer: str) -> None:
        shard = self._open.pop(layer)
        with _told(self.folder):
            shard.finish()
        self._whole[layer].append(shard.rows)

    @staticmethod
    def _name(layer: str, number: int) -> str:
        return f"{quote(layer, safe=' ')}.{number:05d}.safetensors"

    def __enter__(self) -> DumpWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.abandon()


class _Shard:
    """A safetensors file of one layer under a temporary name, as large as it may get.

    Its header stands for as many rows as fit until `finish` writes the true one in its place.
    """

    def __init__(
        self, path: Path, layer: str, layers: Sequence[str], like: Tensor, size: int
    ) -> None:
        if like.dtype not in STORED_DTYPES:
            raise InputError(f"layer {layer} has dtype {like.dtype}, which no dump holds")
        self.rows, self._path, self._layer, self._layers = 0, path, layer, list(layers)
        self._dim, self._dtype = like.shape[1], like.dtype
        self._width = self._dim * like.dtype.itemsize
        self.capacity = max(1, size // max(1, self._width))
        header = self._header(self.capacity)
        self._begin = 8 + len(header)
        self._temporary = partial_path(path)
        self._file = os.open(self._temporary, os.O_WRONLY)
        try:
            os.truncate(self._file, self._begin + self.capacity * self._width)
            self._write(len(header).to_bytes(8, "little") + header, 0)
        except OSError:
            self.remove()
            raise

    def write(self, rows: Tensor) -> None:
        """Writes rows behind those before."""
        self._write(rows.view(torch.uint8).numpy().data, self._begin + self.rows * self._width)
        self.rows += len(rows)

    def finish(self) -> None:
        """Ends the file behind its rows and gives it its name."""
        try:
            self._write(self._header(self.rows).ljust(self._begin - 8), 8)
            os.truncate(self._file, self._begin + self.rows * self._width)
            put_in_place(self._temporary, self._path)
        finally:
            self.remove()

    def remove(self) -> None:
        """Leaves nothing under the temporary name."""
        os.close(self._file)
        self._temporary.unlink(missing_ok=True)

    def _header(self, rows: int) -> bytes:
        """JSON, filled up with spaces so that the rows begin at a multiple of eight bytes."""
        tensor = {
            "dtype": STORED_DTYPES[self._dtype],
            "shape": [rows, self._dim],
            "data_offsets": [0, rows * self._width],
        }
        facts = {"__metadata__": {LAYERS_KEY: json.dumps(self._layers)}, self._layer: tensor}
        text = json.dumps(facts).encode()
        return text.ljust(-(-len(text) // 8) * 8)

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        left = memoryview(data).cast("B")
        while left:
            count = os.pwrite(self._file, left, offset)
            left, offset = left[count:], offset + count
