"""One stored array: rows of one layer, or one id per row, in one file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from aniso.dumps._file_reads import Scratch

_SAMPLES = 16
_SAMPLE_BYTES = 1 << 16
_LAYER_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# What a vector of one id per row is called by those who write dumps.
_IDS = {
    "token_ids": "token_ids",
    "input_ids": "token_ids",
    "attention_mask": "attention_mask",
    "document": "document",
    "document_id": "document",
    "document_ids": "document",
    "doc_id": "document",
    "doc_ids": "document",
}


@dataclass(frozen=True)
class Part:
    """An array in a file; `dtype` is None when it is none that aniso reads.

    Attributes:
        layer: The layer's name.
        path: The file.
        key: The array's name in the file ("" where a file holds one array).
        shape: Its shape, as stored.
        dtype: The torch dtype of what `read` gives, or None.
        stored_dtype: The dtype's name in the file, for error sentences.
        read: read(start, stop, scratch) gives those rows, in the scratch where it can.
        stated_layers: Names of all layers in order of execution, where the file states them.
        stamp: Size and time of change of the file before its header was read.
        single_rows: Whether one row can be read without its neighbours.
    """

    layer: str
    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    stored_dtype: str
    read: Callable[[int, int, Scratch | None], Tensor]
    stated_layers: tuple[str, ...] = ()
    stamp: tuple[int, int] | None = None
    single_rows: bool = False

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
        if self.dtype not in _LAYER_DTYPES:
            raise InputError(
                f"{where} has dtype {self.stored_dtype}; a layer is float64, float32, float16 or "
                "bfloat16: convert it, or leave it out by naming the layers to read"
            )

    def check_unchanged(self) -> None:
        """Raises InputError when the file is not the one whose header was read."""
        try:
            changed = self.stamp is not None and stamp_of(self.path) != self.stamp
        except OSError as error:
            raise InputError(
                f"{self.path} has gone while it was read; bring it back and run again"
            ) from error
        if changed:
            raise InputError(
                f"{self.path} has changed while it was read; bring the old file back, or start "
                "over with --no-resume"
            )

    @property
    def id_name(self) -> str | None:
        """What the ids are, when this is a vector of one id per row."""
        if len(self.shape) != 1 or self.dtype is None or self.dtype.is_floating_point:
            return None
        return _IDS.get(self.layer)

    @property
    def home(self) -> Path:
        """Ids belong to the layers of their file, or of their folder where a file is one array."""
        return self.path if self.key else self.path.parent

    @property
    def source(self) -> str:
        """Identity of the array for provenance: file name, layer and a digest of the content."""
        name = f"{self.path.name}:{self.layer}" if self.key else self.path.name
        return f"{name}@{fingerprint(self.path)}"


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of change of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def fingerprint(path: Path) -> str:
    """Digest of the content; a large file's of size, time of change and evenly spaced samples.

    Renaming keeps it, and so does copying with the time of change. A folder's is one of the names,
    sizes and times of its files.
    """
    status = path.stat()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        facts = [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    return _file_digest(path, status.st_size, status.st_mtime_ns, status.st_ino)


# A file of many arrays is asked for each of them.
@lru_cache(maxsize=64)
def _file_digest(path: Path, size: int, time_ns: int, inode: int) -> str:
    changed = time_ns if size > _SAMPLES * _SAMPLE_BYTES else 0
    digest = hashlib.sha256(f"{size} {changed}".encode())
    with path.open("rb") as file:
        for i in range(_SAMPLES):
            file.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
