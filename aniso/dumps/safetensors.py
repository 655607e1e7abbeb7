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
    """The tensors of a file, in the order the writer stated, else in natural order.

    Raises:
        InputError: not a safetensors file, or truncated.
    """
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is no complete safetensors file ({error}); write it again"
        ) from error
    stated = json.loads((file.metadata() or {}).get(LAYERS_KEY, "[]"))
    keys = sorted(file.keys(), key=natural_key)
    ordered = [key for key in stated if key in keys] + [key for key in keys if key not in stated]
    return [_part(path, file, key) for key in ordered]


def _part(path: Path, file: Any, key: str) -> Part:
    stored = file.get_slice(key)

    def read(start: int, stop: int) -> Tensor:
        rows: Tensor = stored[start:stop]
        return rows

    dtype = stored.get_dtype()
    return Part(key, path, key, tuple(stored.get_shape()), _DTYPES.get(dtype), dtype, read)
