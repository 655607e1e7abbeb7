"""PyTorch files: a tensor or a dict of tensors, mapped, loaded without running code."""

from __future__ import annotations

import struct
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from aniso._names import natural_key
from aniso.dumps._part import Part
from aniso.dumps._reason import reason
from aniso.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from aniso.dumps._file_reads import Scratch

_ZIP_MAGIC = b"PK\x03\x04"


def pt_parts(path: Path) -> list[Part]:
    """The tensors of a .pt file; one alone is named after the file.

    Raises:
        InputError: an old format, damaged, or anything but tensors of numbers.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            raise InputError(f"{path} is no file of torch.save since torch 1.6; save it again")
    try:
        _refuse_inflated(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    # What the unpickler meets in a damaged file is anything at all.
    except (
        UnpicklingError,
        struct.error,
        BadZipFile,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        ImportError,
        MemoryError,
    ) as error:
        raise InputError(
            f"{path} cannot be loaded as tensors alone ({reason(error)}); save a dict of tensors"
        ) from error
    tensors = {"": loaded} if isinstance(loaded, Tensor) else loaded
    if not isinstance(tensors, dict) or not all(_is_plain(k, t) for k, t in tensors.items()):
        raise InputError(f"{path} is no dict of dense tensors; save the rows as {{layer: tensor}}")
    return [_part(path, key, tensors[key]) for key in sorted(tensors, key=natural_key)]


def _refuse_inflated(path: Path) -> None:
    """Reading takes as much memory for a member as the archive's directory says it has."""
    size = path.stat().st_size
    with ZipFile(path) as archive:
        if any(member.file_size > size for member in archive.infolist()):
            raise ValueError("a member larger than the file")


def _is_plain(key: Any, value: Any) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        # Rows that share their memory would take any amount of it when they are copied.
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def _part(path: Path, key: str, tensor: Tensor) -> Part:
    def read(start: int, stop: int, scratch: Scratch | None = None) -> Tensor:
        return tensor[start:stop].detach().clone(memory_format=torch.contiguous_format)

    name = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    return Part(key or path.stem, path, key, shape, tensor.dtype, name, read, single_rows=True)
