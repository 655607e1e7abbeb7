"""Raw binary files: rows and nothing else, described by a JSON file beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aniso.dumps._extent import Extent
from aniso.dumps._part import Part
from aniso.dumps._sidecar import read_sidecar
from aniso.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


def raw_parts(path: Path) -> list[Part]:
    """The rows of a raw file, little-endian and row-major, as one part named after the file.

    Raises:
        InputError: nothing says dtype and dim, or the size is no whole number of rows.
    """
    sidecar = read_sidecar(path)
    if sidecar.dtype is None or sidecar.dim is None:
        raise InputError(
            f"{path} does not say what it holds; write its dtype and width to {path.name}.json "
            'beside it, as {"dtype": "bfloat16", "dim": 768}'
        )
    width, size = sidecar.dim * sidecar.dtype.itemsize, path.stat().st_size
    if size % width:
        raise InputError(
            f"{path} has {size:,} bytes, no whole number of rows of {width:,} bytes; mend "
            f"{path.name}.json or write the file again"
        )
    extent = Extent(path, 0, sidecar.dim, sidecar.dtype)
    name = str(sidecar.dtype).removeprefix("torch.")
    return [
        Part(
            path.stem,
            path,
            "",
            (size // width, sidecar.dim),
            sidecar.dtype,
            name,
            extent.read,
            single_rows=True,
        )
    ]
