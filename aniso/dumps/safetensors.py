"""Safetensors files: one tensor per layer, any number of files (shards of rows)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from aniso._names import natural_key
from aniso.dumps._part import Part
from aniso.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

LAYERS_KEY = "aniso.layers"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def safetensors_parts(path: Path) -> list[Part]:
    """The tensors of a file, in natural order, with the order of layers that the writer stated.

    Raises:
        InputError: not a safetensors file, or truncated.
    """
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is no complete safetensors file ({error}); write it again"
        ) from error
    stated = _stated_layers(path, (file.metadata() or {}).get(LAYERS_KEY, "[]"))
    keys = sorted(file.keys(), key=natural_key)
    return [_part(path, file, key, stated) for key in keys]


def _stated_layers(path: Path, text: str) -> tuple[str, ...]:
    try:
        stated = json.loads(text)
    except json.JSONDecodeError:
        stated = None
    if not isinstance(stated, list) or not all(isinstance(name, str) for name in stated):
        raise InputError(
            f"{path} states its layers as {text[:60]!r}, which is no JSON list of names; "
            f"mend the metadata {LAYERS_KEY!r}"
        )
    return tuple(stated)


def _part(path: Path, file: Any, key: str, stated: tuple[str, ...]) -> Part:
    stored = file.get_slice(key)

    def read(start: int, stop: int) -> Tensor:
        rows: Tensor = stored[start:stop]
        return rows

    dtype = stored.get_dtype()
    shape = tuple(stored.get_shape())
    return Part(key, path, key, shape, _DTYPES.get(dtype), dtype, read, stated)
