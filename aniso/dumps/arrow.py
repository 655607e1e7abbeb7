"""Parquet and Arrow files, and Hugging Face datasets on disk: one column of vectors per layer."""

from __future__ import annotations

import json
import struct
from bisect import bisect_right
from io import BufferedReader, FileIO
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol

import torch

from aniso.dumps._arrow_messages import messages_of
from aniso.dumps._file_reads import refuse_cut
from aniso.dumps._optional import optional
from aniso.dumps._part import Part
from aniso.dumps._reason import reason
from aniso.dumps._sidecar import read_sidecar
from aniso.dumps._unpacked import ParquetPages
from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torch import Tensor

    from aniso.dumps._file_reads import Scratch

_BATCH_ROWS = 1 << 12
_BUFFER_BYTES = 1 << 20
# Rows that are all alike pack well; beyond this the number is damaged.
_ROWS_PER_BYTE = 1000
_ALIKE_BYTES = 1 << 24
_DTYPES = {
    "double": torch.float64,
    "float": torch.float32,
    "halffloat": torch.float16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


class _Table(Protocol):
    """A file of columns, read from any row on."""

    schema: Any
    rows: int

    def batches(self, column: str, start: int) -> Iterator[tuple[int, Any]]:
        """Batches of a column in order, each with its first row, from one that holds `start` on."""


class _Parquet:
    """A parquet file; a row group is decoded batch by batch."""

    def __init__(self, path: Path) -> None:
        parquet = optional("pyarrow.parquet", "parquet", path)
        self._file = parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        self._groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self.rows = sum(self._groups)
        self._pages = ParquetPages(path)
        size = path.stat().st_size
        if min(self._groups, default=0) < 0 or self.rows > _ROWS_PER_BYTE * size:
            raise InputError(f"{path} states {self.rows:,} rows in {size:,} bytes; write it again")

    def batches(self, column: str, start: int) -> Iterator[tuple[int, Any]]:
        first = 0
        for i, count in enumerate(self._groups):
            if first + count > start:
                row = first
                self._pages.check(i, column)
                for batch in self._file.iter_batches(_BATCH_ROWS, [i], [column], use_threads=False):
                    yield row, batch.column(0)
                    row += len(batch)
            first += count


class _Ipc:
    """An Arrow file or stream; a batch is read and unpacked when its rows are asked for."""

    def __init__(self, path: Path) -> None:
        self._arrow = optional("pyarrow", "parquet", path)
        self._ipc = optional("pyarrow.ipc", "parquet", path)
        self._path = path
        self._is_file, messages = messages_of(path)
        self._batches = [message for message in messages if message.rows is not None]
        self._lengths = [message.rows or 0 for message in self._batches]
        # A stream's schema, and the dictionaries that come before its first batch.
        self._head = self._batches[0].begin if self._batches else path.stat().st_size
        with self._source(0) as source:
            self.schema = self._reader(source, None).schema
        self.rows = sum(self._lengths)

    def batches(self, column: str, start: int) -> Iterator[tuple[int, Any]]:
        ends = list(accumulate(self._lengths))
        begin = bisect_right(ends, start)
        with self._source(begin) as source:
            reader = self._reader(source, [self.schema.get_field_index(column)])
            for i in range(begin, len(ends)):
                batch = reader.get_batch(i) if self._is_file else reader.read_next_batch()
                for row in range(0, batch.num_rows, _BATCH_ROWS):
                    first = ends[i] - self._lengths[i] + row
                    yield first, batch.column(0).slice(row, _BATCH_ROWS)

    def _source(self, batch: int) -> Any:
        """The file, or the stream from that batch on."""
        if self._is_file:
            return self._arrow.OSFile(str(self._path))
        begin = self._batches[batch].begin if batch < len(self._batches) else self._head
        return _Stream(self._path, self._head, begin)

    def _reader(self, source: Any, fields: list[int] | None) -> Any:
        options = self._ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        opened = self._ipc.open_file if self._is_file else self._ipc.open_stream
        return opened(source, options=options)


class _Stream(BufferedReader):
    """An Arrow stream with the batches before one left out; no message reaches over the gap."""

    def __init__(self, path: Path, head: int, begin: int) -> None:
        super().__init__(FileIO(path))
        self._head, self._begin = head, begin

    def read(self, count: int | None = -1, /) -> bytes:
        if self.tell() == self._head:
            self.seek(self._begin)
        return super().read(count)


def parquet_parts(path: Path) -> list[Part]:
    """The columns of a parquet file: vectors of numbers are layers, integers are ids.

    Raises:
        InputError: pyarrow is missing, or the file is none.
    """
    return _parts(path, _Parquet)


def arrow_parts(path: Path) -> list[Part]:
    """The columns of an Arrow IPC file or stream, as `parquet_parts`."""
    return _parts(path, _Ipc)


def dataset_files(folder: Path) -> list[Path] | None:
    """The files of a Hugging Face dataset that `save_to_disk` wrote, or None for another folder.

    Raises:
        InputError: several splits, or a damaged or missing description.
    """
    if (folder / "dataset_dict.json").is_file():
        raise InputError(f"{folder} holds several splits; pass the folder of one of them")
    if not (folder / "state.json").is_file() or not (folder / "dataset_info.json").is_file():
        return None
    try:
        names = [
            entry["filename"]
            for entry in json.loads((folder / "state.json").read_bytes())["_data_files"]
        ]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{folder / 'state.json'} lists no data files; save it again") from error
    return [inside(folder, name, folder / "state.json") for name in names]


def inside(folder: Path, name: Any, index: Path) -> Path:
    """The file of that name in the folder.

    Raises:
        InputError: it is missing, or lies elsewhere.
    """
    path = folder / str(name)
    if not isinstance(name, str) or not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{index} names {str(name)[:80]!r}, no file of its folder; mend the index")
    if not path.is_file():
        raise InputError(f"{index} names {name[:80]!r}, which is not there; bring the file back")
    return path


def _parts(path: Path, kind: Callable[[Path], _Table]) -> list[Part]:
    arrow = optional("pyarrow", "parquet", path)
    errors = (arrow.ArrowException, OSError, EOFError, ValueError, OverflowError, struct.error)
    try:
        table = kind(path)
        widths = {field.name: _width(table, field) for field in table.schema}
    except errors as error:
        raise InputError(f"{path} cannot be read ({reason(error)}); write it again") from error
    names = [field.name for field in table.schema]
    if len(set(names)) < len(names):
        raise InputError(f"{path} has two columns of one name; write it again")
    return [_part(path, table, field, widths[field.name], errors) for field in table.schema]


def _part(
    path: Path, table: _Table, field: Any, width: int | None, errors: tuple[type[Exception], ...]
) -> Part:
    name = str(field.type if width is None else field.type.value_type)
    dtype = _DTYPES.get(name)
    if name == "uint16" and read_sidecar(path).dtype == torch.bfloat16:
        dtype = torch.bfloat16
    size = path.stat().st_size
    if not 0 <= table.rows * (width or 0) <= max(_ALIKE_BYTES, _ROWS_PER_BYTE * size):
        raise InputError(
            f"{path}, column {field.name!r}, states {table.rows:,} rows of {width:,} values in "
            f"{size:,} bytes; write it again"
        )
    shape = (table.rows,) if width is None else (table.rows, width)
    column = _Column(path, table, field.name, width or 0, dtype, errors)
    return Part(field.name, path, field.name, shape, dtype, str(field.type), column.read)


def _width(table: _Table, field: Any) -> int | None:
    """Values per row: the length of a list's type, or of its first row; None for no list."""
    kind = str(field.type)
    if kind.startswith("fixed_size_list"):
        return int(field.type.list_size)
    if not kind.startswith(("list", "large_list")):
        return None
    for _, column in table.batches(field.name, 0):
        if len(column):
            column.validate(full=True)
            return len(column[0]) if column[0].is_valid else 0
    return 0


class _Column:
    """One column, read from where the last read ended."""

    def __init__(
        self,
        path: Path,
        table: _Table,
        name: str,
        width: int,
        dtype: torch.dtype | None,
        errors: tuple[type[Exception], ...],
    ) -> None:
        self._path, self._table, self._name = path, table, name
        self._width, self._dtype, self._errors = width, dtype, errors
        self._size = path.stat().st_size
        self._batches: Iterator[tuple[int, Any]] = iter(())
        self._held: tuple[int, Tensor] | None = None

    def read(self, start: int, stop: int, scratch: Scratch | None = None) -> Tensor:
        """Rows [start, stop)."""
        shape = (stop - start, self._width) if self._width else (stop - start,)
        rows = torch.empty(shape, dtype=self._dtype)
        done = start
        while done < stop:
            first, held = self._holding(done)
            count = min(stop, first + len(held)) - done
            rows[done - start : done - start + count] = held[done - first : done - first + count]
            done += count
        if stop == self._table.rows:
            # Dumps have thousands of files, and all stay open.
            self._batches, self._held = iter(()), None
        return rows

    def _holding(self, row: int) -> tuple[int, Tensor]:
        """The batch that holds a row, with its first row."""
        if self._held is None or row < self._held[0]:
            self._batches = self._table.batches(self._name, row)
            self._held = None
        while self._held is None or row >= self._held[0] + len(self._held[1]):
            try:
                first, column = next(self._batches)
                column.validate(full=True)
            except StopIteration as error:
                raise InputError(
                    f"{self._path}, column {self._name!r}, ends before row {row}; write it again"
                ) from error
            except self._errors as error:
                refuse_cut(self._path, self._size)
                raise InputError(
                    f"{self._path}, column {self._name!r}, cannot be read at row {row} "
                    f"({reason(error)}); write it again"
                ) from error
            self._held = first, self._values(first, column)
        return self._held

    def _values(self, first: int, column: Any) -> Tensor:
        flat = column.flatten() if self._width else column
        lengths_agree = not self._width or (
            len(flat) == len(column) * self._width and _all_of_length(column, self._width)
        )
        if column.null_count or flat.null_count or not lengths_agree:
            raise InputError(
                f"{self._path}, column {self._name!r}, has a missing value or a row that is not "
                f"{self._width or 1} values long after row {first}; fill it and write it again"
            )
        array = flat.to_numpy(zero_copy_only=False).copy()
        values = torch.from_numpy(array)
        values = values.view(torch.bfloat16) if self._dtype == torch.bfloat16 else values
        return values.view(len(column), self._width) if self._width else values


def _all_of_length(column: Any, width: int) -> bool:
    if str(column.type).startswith("fixed_size_list"):
        return True
    lengths = column.value_lengths()
    return bool((lengths.to_numpy(zero_copy_only=False) == width).all())
