"""Zarr folders: an array, or a group of arrays with one per layer."""

from __future__ import annotations

import warnings
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from aniso._names import natural_key
from aniso.dumps._optional import optional
from aniso.dumps._part import Part
from aniso.dumps._reason import reason
from aniso.dumps._sidecar import read_sidecar
from aniso.dumps._zarr_chunks import Chunks
from aniso.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from aniso.dumps._file_reads import Scratch

_MARKS = ("zarr.json", ".zarray", ".zgroup")
# A chunk is decoded whole.
_CHUNK_BYTES = 1 << 28
# Codecs that turn bytes into bytes; others run code (pickle) or need packages of their own.
_CODECS = {
    *("bytes", "endian", "transpose", "crc32c", "blosc", "zstd", "gzip", "zlib", "lz4"),
    *("shuffle", "sharding_indexed"),
}
# Beyond this, an array that states far more than it stores is damaged; else rows are alike.
_ALIKE_BYTES, _TIMES = 1 << 24, 1000
# A missing chunk is rows of one value, and takes as long to look for as a small one to read.
_MISSING_CHUNKS, _MISSING_TIMES = 1000, 100
_NAMES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
_DTYPES = {name: getattr(torch, name) for name in _NAMES}


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr array or group."""
    return any((path / mark).is_file() for mark in _MARKS)


def zarr_parts(path: Path) -> list[Part]:
    """The arrays of a Zarr folder, in natural order; an array alone is named after the folder.

    Raises:
        InputError: zarr is missing, the folder is damaged, a chunk is larger than 256 MiB, or a
            codec is one that aniso does not run.
    """
    zarr = optional("zarr", "zarr", path)
    try:
        # zarr leaves out an array that it cannot read with a warning alone.
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            root = zarr.open(str(path), mode="r")
            arrays = {"": root} if isinstance(root, zarr.Array) else dict(root.arrays())
        return [_part(path, key, arrays[key]) for key in sorted(arrays, key=natural_key)]
    except _errors(zarr) as error:
        raise InputError(
            f"{path} cannot be read as Zarr ({reason(error)}); write it again"
        ) from error


def _part(path: Path, key: str, array: Any) -> Part:
    where = f"{path}, array {key!r}," if key else str(path)
    unknown = sorted(set(_codec_names(array.metadata.to_dict())) - _CODECS)
    if unknown:
        raise InputError(
            f"{where} is stored with the codec {unknown[0][:40]!r}, which aniso does "
            "not run; write it with zstd, blosc or gzip"
        )
    stored = np.dtype(array.dtype)
    dtype = _DTYPES.get(stored.name)
    if stored.name == "uint16" and read_sidecar(path).dtype == torch.bfloat16:
        dtype = torch.bfloat16
    if any(n < 1 for n in array.chunks) or prod(array.chunks) * stored.itemsize > _CHUNK_BYTES:
        raise InputError(
            f"{where} has chunks of shape {list(array.chunks)}, beyond 256 MiB; "
            "write it in smaller chunks"
        )
    size, kept = prod(array.shape) * stored.itemsize, int(array.nbytes_stored())
    if size > max(_ALIKE_BYTES, _TIMES * kept):
        raise InputError(
            f"{where} states {size:,} bytes of which {kept:,} are stored; bring its chunks back"
        )
    objects = prod(
        -(-n // m) for n, m in zip(array.shape, array.shards or array.chunks, strict=True)
    )
    files = sum(1 for _ in (path / key).rglob("*"))
    if objects > max(_MISSING_CHUNKS, _MISSING_TIMES * files):
        raise InputError(
            f"{where} states {objects:,} chunks, {files:,} files are there; bring its chunks back"
        )
    chunks = Chunks(path / key, array, where)

    def read(start: int, stop: int, scratch: Scratch | None = None) -> Tensor:
        try:
            chunks.check(start, stop)
            rows = np.asarray(array[start:stop])
        except _errors(optional("zarr", "zarr", path)) as error:
            raise InputError(
                f"{where} cannot be read at row {start} ({reason(error)}); write it again"
            ) from error
        values = torch.from_numpy(np.array(rows, dtype=stored.newbyteorder("="), order="C"))
        return values.view(torch.bfloat16) if dtype == torch.bfloat16 else values

    shape = tuple(int(n) for n in array.shape)
    return Part(key or path.stem, path, key, shape, dtype, str(stored), read)


def _codec_names(metadata: Any) -> list[str]:
    """Every codec of the metadata, those inside shards too."""
    if isinstance(metadata, dict):
        coded = [metadata.get(k) for k in ("codecs", "index_codecs", "filters", "compressor")]
        entries = [e for c in coded if c for e in (c if isinstance(c, list | tuple) else [c])]
        return [
            name
            for entry in entries
            for name in [
                str(entry.get("name", entry.get("id"))),
                *_codec_names(entry.get("configuration", {})),
            ]
        ]
    return []


def _errors(zarr: Any) -> tuple[type[Exception], ...]:
    """What zarr and its codecs raise on damaged input."""
    return (
        zarr.errors.BaseZarrError,
        UserWarning,
        OSError,
        ValueError,
        TypeError,
        LookupError,
        RuntimeError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        MemoryError,
    )
