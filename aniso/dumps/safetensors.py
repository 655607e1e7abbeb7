"""Safetensors files: one tensor per layer, or all layers in `hidden_states`, in any shards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from aniso._names import natural_key
from aniso.dumps._extent import Extent
from aniso.dumps._part import Part
from aniso.dumps._reason import reason
from aniso.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from aniso.dumps._file_reads import Scratch

LAYERS_KEY = "aniso.layers"
# The files of a dump that aniso wrote, and how many rows they hold.
ROWS_INDEX = "rows.index.json"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
STORED_DTYPES = {dtype: name for name, dtype in _DTYPES.items()}
_SCALE_SUFFIXES = ("_scale", ".scale", "_scales", ".scales")
_ALL_LAYERS = "hidden_states"


@dataclass(frozen=True)
class _Stored:
    """A tensor as the header describes it."""

    path: Path
    key: str
    shape: tuple[int, ...]
    stored_dtype: str
    offset: int

    @property
    def dtype(self) -> torch.dtype | None:
        return _DTYPES.get(self.stored_dtype)

    def extent(self, layer: int = 0) -> Extent:
        """The rows [n, d], one layer of [n, layers, d], or the values of a vector [n]."""
        dtype = self.dtype or torch.uint8
        dim = self.shape[-1] if len(self.shape) > 1 else 0
        width = max(1, dim) * dtype.itemsize
        layers = self.shape[1] if len(self.shape) == 3 else 1
        return Extent(self.path, self.offset + layer * width, dim, dtype, layers * width)


def safetensors_parts(path: Path) -> list[Part]:
    """The tensors of a file, in natural order, with the order of layers that the writer stated.

    A `hidden_states` [n, layers, d], as vLLM writes it, gives one part per layer. Values in fp8 are
    multiplied by the scales per row that `<name>_scale` [n] holds, in float32.

    Raises:
        InputError: not a safetensors file, or truncated.
    """
    _refuse_unfinished(path)
    tensors, stated = _header(path)
    scales = {
        tensor.key + suffix: tensors[tensor.key + suffix]
        for tensor in tensors.values()
        for suffix in _SCALE_SUFFIXES
        if _is_fp8(tensor) and tensor.key + suffix in tensors
    }
    return [
        part
        for key in sorted(tensors.keys() - scales.keys(), key=natural_key)
        for part in _parts(tensors[key], _scale_of(key, scales), stated)
    ]


def _header(path: Path) -> tuple[dict[str, _Stored], tuple[str, ...]]:
    try:
        # It checks that the tensors fill the file without gap or overlap.
        with safe_open(path, framework="pt") as file:
            stated = _stated_layers(path, (file.metadata() or {}).get(LAYERS_KEY, "[]"))
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path} is no complete safetensors file ({reason(error)}); write it again"
        ) from error
    header.pop("__metadata__", None)
    tensors = {
        key: _Stored(
            path, key, tuple(entry["shape"]), entry["dtype"], 8 + size + entry["data_offsets"][0]
        )
        for key, entry in header.items()
    }
    return tensors, stated


def _refuse_unfinished(path: Path) -> None:
    """VLLM holds a lock on FILE.lock while it writes FILE."""
    lock = path.with_name(path.name + ".lock")
    if not lock.is_file():
        return
    try:
        import fcntl
    except ImportError:
        return
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(
                f"{path} is being written, {lock.name} is locked; run again when it is finished"
            ) from error


def _stated_layers(path: Path, text: str) -> tuple[str, ...]:
    try:
        stated = json.loads(text)
    except (ValueError, RecursionError):
        stated = None
    if not isinstance(stated, list) or not all(isinstance(name, str) for name in stated):
        raise InputError(
            f"{path} states its layers as {text[:60]!r}, which is no JSON list of names; "
            f"mend the metadata {LAYERS_KEY!r}"
        )
    return tuple(stated)


def _is_fp8(tensor: _Stored) -> bool:
    return tensor.stored_dtype.startswith("F8_E")


def _scale_of(key: str, scales: dict[str, _Stored]) -> _Stored | None:
    return next(
        (scales[key + suffix] for suffix in _SCALE_SUFFIXES if key + suffix in scales), None
    )


def _parts(tensor: _Stored, scale: _Stored | None, stated: tuple[str, ...]) -> list[Part]:
    if len(tensor.shape) != 3 or tensor.key.rpartition(".")[2] != _ALL_LAYERS:
        return [_part(tensor, scale, stated, None)]
    return [_part(tensor, scale, stated, layer) for layer in range(tensor.shape[1])]


def _part(
    tensor: _Stored, scale: _Stored | None, stated: tuple[str, ...], layer: int | None
) -> Part:
    extent = tensor.extent(layer or 0)
    shape = tensor.shape if layer is None else (tensor.shape[0], tensor.shape[2])
    name = tensor.key if layer is None else f"{tensor.key}.{layer}"
    read, dtype = extent.read, tensor.dtype
    if _is_fp8(tensor) and dtype is not None:
        read, dtype = _dequantised(extent, _scale_extent(tensor, scale, layer or 0)), torch.float32
    stored = tensor.stored_dtype
    return Part(name, tensor.path, tensor.key, shape, dtype, stored, read, stated, single_rows=True)


def _scale_extent(tensor: _Stored, scale: _Stored | None, layer: int) -> Extent | None:
    """One scale per row, [n] or [n, 1], or per row and layer, [n, layers] or [n, layers, 1]."""
    if scale is None:
        return None
    rows, layers = tensor.shape[0], tensor.shape[1] if len(tensor.shape) == 3 else 1
    shape = scale.shape[:-1] if len(scale.shape) > 1 and scale.shape[-1] == 1 else scale.shape
    if scale.dtype is None or not scale.dtype.is_floating_point or _is_fp8(scale):
        raise InputError(
            f"{scale.path}, array {scale.key!r}, has dtype {scale.stored_dtype}; "
            "scales are floating-point numbers, write them again"
        )
    if shape not in ((rows,), (rows, layers)):
        raise InputError(
            f"{scale.path}, array {scale.key!r}, has shape {list(scale.shape)}; "
            f"scales of {tensor.key!r} are one per row, [{rows}]: write them again"
        )
    size = scale.dtype.itemsize
    columns = layers if len(shape) == 2 else 1
    offset = scale.offset + (layer * size if columns > 1 else 0)
    return Extent(scale.path, offset, 0, scale.dtype, columns * size)


def _dequantised(values: Extent, scale: Extent | None) -> Any:
    def read(start: int, stop: int, scratch: Scratch | None = None) -> Tensor:
        rows = values.read(start, stop).float()
        return rows if scale is None else rows.mul_(scale.read(start, stop).float()[:, None])

    return read
