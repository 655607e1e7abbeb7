"""One stored array: rows of one layer in one file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from torch import Tensor

_SAMPLES = 16
_SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True)
class Part:
    """An array of rows in a file; `dtype` is None when it is none that aniso reads.

    Attributes:
        layer: The layer's name.
        path: The file.
        key: The array's name in the file ("" where a file holds one array).
        shape: Its shape, as stored.
        dtype: Its torch dtype, or None.
        stored_dtype: The dtype's name in the file, for error sentences.
        read: read(start, stop) gives those rows.
        stated_layers: Names of all layers in order of execution, where the file states them.
    """

    layer: str
    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    stored_dtype: str
    read: Callable[[int, int], Tensor]
    stated_layers: tuple[str, ...]

    def check(self) -> None:
        """Raises InputError unless these are rows [n, d] of a floating dtype."""
        where = f"{self.path}, array {self.key!r}," if self.key else f"{self.path}"
        if len(self.shape) == 2 and self.shape[1] == 0:
            raise InputError(f"{where} has shape {list(self.shape)}, no columns; write it again")
        if len(self.shape) != 2:
            raise InputError(
                f"{where} has shape {list(self.shape)}; a layer is rows [n, d]: "
                "reshape it, or leave it out by naming the layers to read"
            )
        if self.dtype is None:
            raise InputError(
                f"{where} has dtype {self.stored_dtype}; a layer is float64, float32, float16 or "
                "bfloat16: convert it, or leave it out by naming the layers to read"
            )

    @property
    def source(self) -> str:
        """Identity of the array for provenance: file name, key and a digest of the content."""
        name = f"{self.path.name}:{self.key}" if self.key else self.path.name
        return f"{name}@{_fingerprint(self.path)}"


def _fingerprint(path: Path) -> str:
    """Digest of the content; a large file's of size, time of change and evenly spaced samples.

    Renaming keeps it, and so does copying with the time of change.
    """
    status = path.stat()
    size = status.st_size
    changed = status.st_mtime_ns if size > _SAMPLES * _SAMPLE_BYTES else 0
    digest = hashlib.sha256(f"{size} {changed}".encode())
    with path.open("rb") as file:
        for i in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
