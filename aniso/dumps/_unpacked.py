"""What compressed data say they unpack to, read before a library takes memory for it.

Parquet (apache/parquet-format, `PageHeader` in compact Thrift), Zstandard (RFC 8878), Blosc
(c-blosc, README_CHUNK_FORMAT).
"""

from __future__ import annotations

import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from aniso.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

# Rows of activations shrink to half at best, columns of one value a thousandfold.
_TIMES = 100
_ALLOWED = 1 << 24
_HEADER_BYTES = (1 << 12, 1 << 20)
_PIECE = 1 << 16
# What parsing damaged metadata meets.
_DAMAGED = (LookupError, TypeError, ValueError, AttributeError, RecursionError)


def refuse_unpacking(unpacked: int, stored: int, where: str) -> None:
    """Raises InputError when so many stored bytes state an absurd size, or a negative one."""
    if unpacked < 0 or stored < 0 or unpacked > max(_ALLOWED, _TIMES * stored):
        raise InputError(
            f"{where} states that {stored:,} bytes unpack to {unpacked:,}; it is damaged, write "
            "it again"
        )


class ParquetPages:
    """The pages of a parquet file, found without the library that would unpack them.

    Raises:
        InputError: the footer is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            file.seek(-8, os.SEEK_END)
            size = int.from_bytes(file.read(4), "little")
            file.seek(-min(size + 8, path.stat().st_size), os.SEEK_END)
            footer = file.read(size)
        try:
            groups = _Thrift(footer).struct()[4]
            self._chunks = [[_Chunk.of(column[3]) for column in group[1]] for group in groups]
        except _DAMAGED as error:
            raise InputError(f"{path} has a damaged footer; write it again") from error

    def check(self, group: int, column: str) -> None:
        """Every page of a column in a row group.

        Raises:
            InputError: a page reaches out of its column, or states an absurd size.
        """
        for chunk in self._chunks[group]:
            if chunk.column == column:
                self._check(chunk)

    def _check(self, chunk: _Chunk) -> None:
        with self._path.open("rb") as file:
            at = chunk.begin
            while at < chunk.end:
                length, unpacked, stored = self._header(file, at)
                if stored < 0 or at + length + stored > chunk.end:
                    raise InputError(
                        f"{self._path} has a page of {stored:,} bytes that reaches out of its "
                        "column; it is damaged, write it again"
                    )
                refuse_unpacking(unpacked, stored, f"{self._path} has a page that")
                at += length + stored

    def _header(self, file: BinaryIO, at: int) -> tuple[int, int, int]:
        """Length of the header, size unpacked and size stored of the page that begins here."""
        for size in _HEADER_BYTES:
            file.seek(max(0, at))
            header = _Thrift(file.read(size))
            with suppress(*_DAMAGED):
                fields = header.struct()
                return header.at, int(fields[2]), int(fields[3])
        raise InputError(f"{self._path} has a page without a header at byte {at}; write it again")


@dataclass(frozen=True)
class _Chunk:
    """Where the pages of a column lie."""

    column: str
    begin: int
    end: int

    @classmethod
    def of(cls, metadata: dict[int, Any]) -> _Chunk:
        """From the struct ColumnMetaData."""
        first, dictionary = int(metadata[9]), int(metadata.get(11, 0))
        begin = min(first, dictionary) if dictionary > 0 else first
        return cls(metadata[3][0].decode(), begin, begin + int(metadata[7]))


class _Thrift:
    """Thrift's compact protocol: structs as {number: value}, lists, bytes and integers."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def struct(self) -> dict[int, Any]:
        """The struct that begins here."""
        found: dict[int, Any] = {}
        name = 0
        while head := self._byte():
            name = name + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            found[name] = kind == 1 if kind in (1, 2) else self._value(kind)
        return found

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
        return value | byte << shift

    def _integer(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)

    def _value(self, kind: int) -> Any:
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 8:
            return self._bytes(self._unsigned())
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._unsigned()
            return [self._value(head & 15) for _ in range(min(count, len(self._data) + 1))]
        if kind == 12:
            return self.struct()
        # A byte, a truth value inside a list, or a double.
        return self._bytes({1: 1, 2: 1, 3: 1, 7: 8}[kind])

    def _bytes(self, count: int) -> bytes:
        begin, self.at = self.at, self.at + count
        return self._data[begin : self.at]


def unpacked_size(codec: str, data: bytes) -> int:
    """Bytes that compressed data unpack to, by their header; those of gzip are counted."""
    if codec in ("gzip", "zlib"):
        return _deflated_size(data)
    if codec == "blosc":
        return int.from_bytes(data[4:8], "little")
    if codec == "lz4":
        return int.from_bytes(data[:4], "little")
    return _zstd_size(data)


def _zstd_size(data: bytes) -> int:
    """The content size of the first frame; 0 where it has none."""
    if len(data) < 18 or data[:4] != b"\x28\xb5\x2f\xfd":
        return 0
    flags, single = data[4], data[4] >> 5 & 1
    at = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    size = (single, 2, 4, 8)[flags >> 6]
    return int.from_bytes(data[at : at + size], "little") + 256 * (size == 2)


def _deflated_size(data: bytes) -> int:
    total = 0
    while data:
        inflate = zlib.decompressobj(wbits=47)
        while data and not inflate.eof:
            try:
                total += len(inflate.decompress(data, _PIECE))
            except zlib.error:
                return total
            data = inflate.unconsumed_tail
        if total > _TIMES * _ALLOWED:
            return total
        data = inflate.unused_data
    return total
