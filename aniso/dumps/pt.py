"""PyTorch files: a tensor or a dict of tensors, found without running code, read in blocks."""

from __future__ import annotations

import struct
import sys
from bisect import bisect_right
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor

from aniso._names import natural_key
from aniso.dumps._extent import Extent
from aniso.dumps._part import Part
from aniso.dumps._reason import reason
from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aniso.dumps._file_reads import Scratch

_ZIP_MAGIC = b"PK\x03\x04"
# Since torch 2.10 tensors on "meta" know their place in the file.
_PLACE = "_checkpoint_offset"


def pt_parts(path: Path) -> list[Part]:
    """The tensors of a .pt file; one alone is named after the file.

    Raises:
        InputError: an old format, damaged, or anything but tensors of numbers.
    """
    with path.open("rb") as file:
        if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            raise InputError(f"{path} is no file of torch.save since torch 1.6; save it again")
    try:
        members = _Members.of(path)
        _refuse_swapped(path)
        loaded = torch.load(path, map_location="meta", weights_only=True)
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
    return [_part(path, key, tensors[key], members) for key in sorted(tensors, key=natural_key)]


def _refuse_swapped(path: Path) -> None:
    """Torch would swap bytes of tensors that have none, which kills the process."""
    archive: Any = torch._C.PyTorchFileReader(str(path))
    stated = archive.get_record("byteorder") if archive.has_record("byteorder") else b"little"
    if stated != sys.byteorder.encode():
        raise ValueError(f"bytes in the order {stated[:20]!r}, this machine's is {sys.byteorder}")


@dataclass(frozen=True)
class _Members:
    """Where the members of the archive begin, and how many bytes each holds."""

    begins: list[int]
    sizes: list[int]

    @classmethod
    def of(cls, path: Path) -> _Members:
        """Raises ValueError when reading one could take more memory than the file."""
        size = path.stat().st_size
        with ZipFile(path) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.header_offset)
        if any(m.file_size > size or m.compress_type != ZIP_STORED for m in members):
            raise ValueError("a member that is packed, or larger than the file")
        return cls([m.header_offset for m in members], [m.file_size for m in members])

    def bytes_at(self, place: int) -> int:
        """Bytes of the member whose content begins there."""
        i = bisect_right(self.begins, place) - 1
        return self.sizes[i] if i >= 0 else 0


def _is_plain(key: Any, value: Any) -> bool:
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
    )


def _part(path: Path, key: str, tensor: Tensor, members: _Members) -> Part:
    place = getattr(tensor.untyped_storage(), _PLACE, None)
    if place is None:
        raise InputError(
            f"{path} needs torch 2.10 or newer to be read in blocks; upgrade torch, or save the "
            "rows with safetensors"
        )
    held, size = members.bytes_at(place), tensor.element_size()
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    # Rows that share their memory would take any amount of it when they are copied.
    if tensor.numel() and size * max(tensor.storage_offset() + last + 1, tensor.numel()) > held:
        raise InputError(
            f"{path}, tensor {key!r}, has shape {list(tensor.shape)}, but {held:,} bytes; save a "
            "dense tensor"
        )
    begin = place + size * tensor.storage_offset()
    name = str(tensor.dtype).removeprefix("torch.")
    shape, read = tuple(tensor.shape), _read(path, tensor, begin)
    return Part(key or path.stem, path, key, shape, tensor.dtype, name, read, single_rows=True)


def _read(path: Path, tensor: Tensor, begin: int) -> Callable[[int, int, Scratch | None], Tensor]:
    size, steps = tensor.element_size(), tensor.stride()
    stride = steps[0] * size if steps else 0
    if tensor.ndim < 2:
        return Extent(path, begin, 0, tensor.dtype, stride).read
    if steps[0] < steps[1]:
        return Extent(path, begin, tensor.shape[1], tensor.dtype, stride).columns(steps[1] * size)
    step = max(1, steps[1])
    spread = Extent(path, begin, (tensor.shape[1] - 1) * step + 1, tensor.dtype, stride)
    return spread.read if step == 1 else _every(step, spread)


def _every(step: int, rows: Extent) -> Callable[[int, int, Scratch | None], Tensor]:
    """Values that are not adjacent are read with what lies between them."""

    def read(start: int, stop: int, scratch: Scratch | None = None) -> Tensor:
        return rows.read(start, stop, scratch)[:, ::step].contiguous()

    return read
