"""What compressed data say they unpack to, read before a library takes memory for it.

Parquet (apache/parquet-format, `PageHeader` in compact Thrift), Arrow (`Message.fbs`, flatbuffers
that pyarrow has verified), Zstandard (RFC 8878), Blosc (c-blosc, README_CHUNK_FORMAT).
"""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
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


class _Flat:
    """A table of a flatbuffer."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    @classmethod
    def root(cls, data: bytes) -> _Flat:
        """The table that the buffer begins with."""
        return cls(data, _unpack("<I", data, 0))

    def _place(self, field: int) -> int:
        """Where a field's value lies; 0 when it is left out."""
        table = self._at - _unpack("<i", self._data, self._at)
        inside = 4 + 2 * field < _unpack("<H", self._data, table)
        offset = _unpack("<H", self._data, table + 4 + 2 * field) if inside else 0
        return self._at + offset if offset else 0

    def number(self, field: int, form: str) -> int:
        """A number of that struct format."""
        place = self._place(field)
        return _unpack(form, self._data, place) if place else 0

    def table(self, field: int) -> _Flat | None:
        """The table that a field points to."""
        place = self._place(field)
        return _Flat(self._data, place + _unpack("<I", self._data, place)) if place else None

    def structs(self, field: int, form: str) -> Iterator[tuple[int, ...]]:
        """The structs of a vector."""
        place = self._place(field)
        if place:
            begin = place + _unpack("<I", self._data, place)
            for i in range(_unpack("<I", self._data, begin)):
                yield struct.unpack_from(form, self._data, begin + 4 + i * struct.calcsize(form))


def _unpack(form: str, data: bytes, at: int) -> int:
    value: int = struct.unpack_from(form, data, at)[0]
    return value


def arrow_blocks(footer: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Begin and size of the dictionaries and of the record batches that a file's footer lists."""
    table = _Flat.root(footer)
    dictionaries, batches = (
        [(begin, head + body) for begin, head, body in table.structs(field, "<qi4xq")]
        for field in (2, 3)
    )
    return dictionaries, batches


def arrow_rows(metadata: bytes, body: memoryview, path: Path) -> int | None:
    """Rows of a record batch; None for another message.

    Raises:
        InputError: its buffers unpack to an absurd size.
    """
    message = _Flat.root(metadata)
    kind, batch = message.number(1, "<B"), message.table(2)
    if batch is not None and kind == 2:
        batch = batch.table(1)
    if batch is None or kind not in (2, 3):
        return None
    buffers, size = list(batch.structs(2, "<qq")), len(body)
    if batch.table(3) is not None:
        size = sum(_arrow_size(body, *buffer) for buffer in buffers)
        refuse_unpacking(size, len(body), f"{path} has a batch that")
    rows = batch.number(0, "<q") if kind == 3 else 0
    # A row of a layer has two bytes or more.
    if not 0 <= rows <= size:
        raise InputError(f"{path} states {rows:,} rows in {size:,} bytes; write it again")
    return rows if kind == 3 else None


def _arrow_size(body: memoryview, begin: int, size: int) -> int:
    """What a buffer unpacks to: its first eight bytes, or -1 there when it is not packed."""
    if size < 8 or not 0 <= begin <= len(body) - 8:
        return 0
    stated: int = struct.unpack_from("<q", body, begin)[0]
    return size if stated < 0 else stated


def unpacked_size(codec: str, data: bytes) -> int:
    """Bytes that compressed data unpack to, by their header; those of gzip are counted."""
    if codec in ("gzip", "zlib"):
        return _deflated_size(data)
    if codec == "blosc":
        return _unpack("<I", data, 4) if len(data) >= 8 else 0
    if codec == "lz4":
        return _unpack("<I", data, 0) if len(data) >= 4 else 0
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
