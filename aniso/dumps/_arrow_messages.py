"""Where the messages of an Arrow file or stream lie, and what they say they hold.

Read before a library takes memory for it (Apache Arrow, columnar format: "Serialization and
Interprocess Communication", `Message.fbs` and `File.fbs`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aniso.dumps._unpacked import refuse_unpacking
from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

FILE_MAGIC = b"ARROW1"
_CONTINUED = b"\xff\xff\xff\xff"
# Length, and the magic again.
_TAIL = 4 + len(FILE_MAGIC)
_DICTIONARY, _BATCH = 2, 3


@dataclass(frozen=True)
class Message:
    """A message of a file; `rows` is None when it is no batch of rows."""

    begin: int
    end: int
    rows: int | None


def messages_of(path: Path) -> tuple[bool, list[Message]]:
    """Whether a path is a file (a stream otherwise), and its messages in order.

    A file's are its batches and dictionaries; a stream's begin with its schema.

    Raises:
        InputError: a message reaches out of the file, or states an absurd size.
        struct.error, OSError: the bytes are no messages.
    """
    with path.open("rb") as file:
        walk = _Walk(path, file, path.stat().st_size)
        is_file = file.read(len(FILE_MAGIC)) == FILE_MAGIC
        return is_file, list(walk.file() if is_file else walk.stream())


@dataclass(frozen=True)
class _Walk:
    path: Path
    open: BinaryIO
    size: int

    def file(self) -> Iterator[Message]:
        """The blocks that the footer lists."""
        (length,) = struct.unpack("<i", self._bytes(self.size - _TAIL, 4))
        footer = _Flat.root(self._bytes(self.size - _TAIL - length, length))
        for field in (2, 3):
            for begin, head, _ in footer.structs(field, "<qi4xq"):
                yield self._message(begin, begin + head, *self._framed(begin))

    def stream(self) -> Iterator[Message]:
        """One message after another, to the end or to one without a length."""
        begin = 0
        while begin < self.size:
            at, length = self._framed(begin)
            if length == 0:
                return
            message = self._message(begin, at + length, at, length)
            yield message
            begin = message.end

    def _framed(self, begin: int) -> tuple[int, int]:
        """Where a message's metadata begin, and how many bytes they are."""
        at = begin + 4 * (self._bytes(begin, 4) == _CONTINUED)
        (length,) = struct.unpack("<i", self._bytes(at, 4))
        return at + 4, length

    def _message(self, begin: int, body: int, at: int, length: int) -> Message:
        table = _Flat.root(self._bytes(at, length))
        size = table.number(3, "<q")
        if size < 0 or not at + length <= body <= self.size - size:
            raise InputError(f"{self.path} has a batch outside the file; write it again")
        return Message(begin, body + size, self._rows(table, body, size))

    def _rows(self, message: _Flat, begin: int, size: int) -> int | None:
        """The rows of a batch whose body begins there; None for another message."""
        kind, batch = message.number(1, "<B"), message.table(2)
        if batch is not None and kind == _DICTIONARY:
            batch = batch.table(1)
        if batch is None or kind not in (_DICTIONARY, _BATCH):
            return None
        unpacked = size
        if batch.table(3) is not None:
            unpacked = sum(self._unpacked(begin, size, *b) for b in batch.structs(2, "<qq"))
            refuse_unpacking(unpacked, size, f"{self.path} has a batch that")
        rows = batch.number(0, "<q") if kind == _BATCH else 0
        # A row of a layer has two bytes or more.
        if not 0 <= rows <= unpacked:
            raise InputError(
                f"{self.path} states {rows:,} rows in {unpacked:,} bytes; write it again"
            )
        return rows if kind == _BATCH else None

    def _unpacked(self, body: int, size: int, begin: int, length: int) -> int:
        """What a buffer unpacks to: its first eight bytes, or -1 there when it is not packed."""
        if length < 8 or not 0 <= begin <= size - 8:
            return 0
        stated: int = struct.unpack("<q", self._bytes(body + begin, 8))[0]
        return length if stated < 0 else stated

    def _bytes(self, begin: int, count: int) -> bytes:
        if count < 0 or not 0 <= begin <= self.size - count:
            raise InputError(f"{self.path} has a batch outside the file; write it again")
        self.open.seek(begin)
        return self.open.read(count)


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
