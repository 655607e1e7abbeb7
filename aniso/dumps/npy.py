"""NumPy files: one array each, read in place, never unpickled."""

from __future__ import annotations

import sys
from math import prod
from tokenize import TokenError
from typing import TYPE_CHECKING, BinaryIO

import torch
from numpy.lib import format as npy_format

from aniso.dumps._extent import Extent
from aniso.dumps._part import Part
from aniso.dumps._reason import reason
from aniso.dumps._sidecar import read_sidecar
from aniso.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
_MAGIC = b"\x93NUMPY"
_DTYPES = {
    **{name: getattr(torch, name) for name in ("float64", "float32", "float16")},
    **{name: getattr(torch, name) for name in ("int64", "int32", "int16", "int8", "uint8", "bool")},
}
_READERS = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}
_HEADER_BYTES = 1 << 16
_FOREIGN = ">" if sys.byteorder == "little" else "<"


def npy_parts(path: Path) -> list[Part]:
    """The array of a .npy file as one part named after the file.

    bfloat16, which NumPy lacks, is stored as uint16 and named in a JSON file beside it.

    Raises:
        InputError: not a NumPy file, truncated, or of Python objects.
    """
    shape, in_columns, stored, offset = _header(path)
    size = path.stat().st_size
    if any(n < 0 for n in shape) or prod(shape) * stored.itemsize > size - offset:
        raise InputError(
            f"{path} has {size:,} bytes, fewer than its shape {list(shape)} needs; "
            "write it with numpy.save"
        )
    dtype = _DTYPES.get(stored.name)
    if stored.kind in "uV" and stored.itemsize == 2 and stored.names is None:
        dtype = read_sidecar(path).dtype
        dtype = dtype if dtype == torch.bfloat16 else None
    dim = shape[1] if len(shape) > 1 else 0
    extent = Extent(path, offset, dim, dtype or torch.uint8, swapped=stored.byteorder == _FOREIGN)
    apart = shape[0] * extent.dtype.itemsize if shape else 0
    read = extent.columns(apart) if in_columns and dim else extent.read
    return [Part(path.stem, path, "", shape, dtype, str(stored), read, single_rows=True)]


def _header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, whether it is stored column after column, dtype, and where the values begin."""
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise InputError(f"{path} is no NumPy file; write it with numpy.save")
        file.seek(0)
        # NumPy parses the header as a Python literal: a damaged one fails in the tokenizer.
        try:
            version = npy_format.read_magic(file)
            if version not in _READERS:
                raise ValueError(f"format version {version[0]}.{version[1]}")
            _refuse_long_header(file, version[0])
            shape, in_columns, dtype = _READERS[version](file)
        except (ValueError, EOFError, OSError, SyntaxError, TypeError, TokenError) as error:
            raise InputError(
                f"{path} cannot be read as an array of numbers ({reason(error)}); "
                "write it with numpy.save"
            ) from error
        if dtype.hasobject:
            raise InputError(f"{path} holds Python objects, no numbers; write it with numpy.save")
        return shape, bool(in_columns), dtype, file.tell()


def _refuse_long_header(file: BinaryIO, version: int) -> None:
    """NumPy takes memory for as many bytes as the header is said to have."""
    begin = file.tell()
    size = int.from_bytes(file.read(2 * version), "little")
    file.seek(begin)
    if size > _HEADER_BYTES:
        raise ValueError(f"a header of {size:,} bytes")
