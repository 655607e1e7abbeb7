"""The stored chunks of a Zarr array, looked at before a codec takes memory for them."""

from __future__ import annotations

import struct
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from aniso.dumps._unpacked import unpacked_size
from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_COMPRESSORS = {"blosc", "zstd", "gzip", "zlib", "lz4"}
# A checksum, and what a codec adds to the rows of a chunk.
_SLACK = 64
_MISSING = (1 << 64) - 1


class Chunks:
    """Where the chunks of an array lie and what they may unpack to.

    Args:
        folder: The array's folder.
        array: The zarr.Array.
        where: The array's name in errors.

    Raises:
        InputError: it is compressed twice, or in shards of shards or with an index of another kind.
    """

    def __init__(self, folder: Path, array: Any, where: str) -> None:
        self._folder, self._array, self._where = folder, array, where
        self._outer = array.shards or array.chunks
        self._limit = prod(array.chunks) * array.dtype.itemsize + _SLACK
        self._index: tuple[int, bool, bool] | None = None
        codecs = _codecs(array.metadata.to_dict())
        for name, settings in codecs:
            if name == "sharding_indexed":
                self._index = self._shard_index(settings)
                codecs = _named(settings.get("codecs"))
        names = [name for name, _ in codecs if name in _COMPRESSORS]
        if len(names) > 1 or any(name == "sharding_indexed" for name, _ in codecs[1:]):
            raise InputError(f"{where} is packed more than once; write it with one compressor")
        self._codec = names[0] if names else ""

    def check(self, start: int, stop: int) -> None:
        """Looks at every chunk of rows [start, stop).

        Raises:
            InputError: one unpacks to more than a chunk holds.
        """
        if not self._codec or start >= stop:
            return
        shape, step = self._array.shape, self._outer
        rows = range(start // step[0], -(-stop // step[0]))
        others = [range(-(-n // m)) for n, m in zip(shape[1:], step[1:], strict=True)]
        for place in product(rows, *others):
            path = self._folder / self._array.metadata.encode_chunk_key(place)
            if path.is_file():
                for data in self._packed(path):
                    self._refuse(unpacked_size(self._codec, data), path)

    def _packed(self, path: Path) -> Iterator[bytes]:
        """What is unpacked at once: the file, or each chunk of a shard."""
        # A gzip stream is counted to its end, of the others the header says it.
        whole = self._codec in ("gzip", "zlib")
        with path.open("rb") as file:
            if self._index is None:
                yield file.read() if whole else file.read(_SLACK)
                return
            for begin, size in self._entries(file.read()):
                file.seek(begin)
                yield file.read(size if whole else min(size, _SLACK))

    def _entries(self, shard: bytes) -> list[tuple[int, int]]:
        count, checked, at_end = self._index or (0, False, True)
        size = 16 * count
        begin = len(shard) - size - 4 * checked if at_end else 0
        if begin < 0 or size > len(shard):
            return []
        numbers = struct.unpack_from(f"<{2 * count}Q", shard, begin)
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        return [(a, n) for a, n in pairs if a != _MISSING and a + n <= len(shard)]

    def _refuse(self, size: int, path: Path) -> None:
        if size > self._limit:
            raise InputError(
                f"{self._where} has a chunk {path.name} that unpacks to {size:,} bytes where a "
                f"chunk has {self._limit - _SLACK:,}; it is damaged, write it again"
            )

    def _shard_index(self, settings: Any) -> tuple[int, bool, bool]:
        """Chunks of a shard, whether the index has a checksum, and whether it is at the end."""
        names = [name for name, _ in _named(settings.get("index_codecs"))]
        if names not in (["bytes"], ["bytes", "crc32c"]):
            raise InputError(f"{self._where} has shards with an index of another kind than usual")
        inner, outer = self._array.chunks, self._outer
        count = prod(m // n for m, n in zip(outer, inner, strict=True))
        return count, "crc32c" in names, settings.get("index_location", "end") == "end"


def _codecs(metadata: Any) -> list[tuple[str, Any]]:
    """Name and settings of every codec, filters first."""
    kinds = ("filters", "codecs", "compressor")
    return [codec for kind in kinds for codec in _named(metadata.get(kind))]


def _named(codecs: Any) -> list[tuple[str, Any]]:
    listed = codecs if isinstance(codecs, list | tuple) else [codecs] if codecs else []
    return [(str(c.get("name", c.get("id"))), c.get("configuration", c)) for c in listed]
