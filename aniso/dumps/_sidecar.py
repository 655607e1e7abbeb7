"""What a file cannot say of itself: dtype and width, in a small JSON file beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from aniso.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_MAX_BYTES = 1 << 16


@dataclass(frozen=True)
class Sidecar:
    """What FILE.json says of FILE; None where it says nothing."""

    dtype: torch.dtype | None = None
    dim: int | None = None


def read_sidecar(path: Path) -> Sidecar:
    """The description in `<file name>.json`: {"dtype": "bfloat16", "dim": 768}, both optional.

    Raises:
        InputError: it is no such JSON.
    """
    beside = path.with_name(path.name + ".json")
    if not beside.is_file():
        return Sidecar()
    if beside.stat().st_size > _MAX_BYTES:
        raise InputError(f"{beside} is larger than a description; {_advice()}")
    try:
        facts = json.loads(beside.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{beside} is no JSON; {_advice()}") from error
    if not isinstance(facts, dict):
        raise InputError(f"{beside} is no JSON object; {_advice()}")
    dtype, dim = facts.get("dtype"), facts.get("dim")
    if dtype is not None and (not isinstance(dtype, str) or dtype not in DTYPES):
        raise InputError(f"{beside} states the dtype {str(dtype)[:40]!r}; {_advice()}")
    if dim is not None and (type(dim) is not int or not 0 < dim < 1 << 40):
        raise InputError(f"{beside} states the dim {str(dim)[:40]!r}; {_advice()}")
    return Sidecar(None if dtype is None else DTYPES[dtype], dim)


def _advice() -> str:
    return 'write {"dtype": "bfloat16", "dim": 768} (or float64, float32, float16) to it'
