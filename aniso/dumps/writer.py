"""Writing dumps: safetensors shards of rows, each complete or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors.torch import save_file

from aniso._files import atomic_path, writable_folder
from aniso.dumps.safetensors import LAYERS_KEY
from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from torch import Tensor

# One shard's rows wait in memory until it is written.
_SHARD_BYTES = 1 << 29


class RowWriter(Protocol):
    """What takes the rows of a capture."""

    def append(self, layer: str, rows: Tensor) -> None:
        """Takes rows [n, d] of a layer."""

    def flush_if_full(self) -> None:
        """Called when all layers have the same rows."""

    def flush(self) -> None:
        """Called at the end."""


class DumpWriter:
    """Collects rows per layer and writes them as `rows-00000.safetensors`, `rows-00001…`.

    Args:
        folder: Where the shards go; made if need be.
        layers: Names in order of execution; every shard states it.
        shard_bytes: A shard is written when its rows reach this size.

    Raises:
        InputError: the folder is not writable, or holds a dump already.
    """

    def __init__(
        self, folder: str | Path, layers: Sequence[str], *, shard_bytes: int = _SHARD_BYTES
    ) -> None:
        self.folder = Path(folder)
        if any(self.folder.glob("*.safetensors")):
            raise InputError(f"folder {folder} holds a dump already; choose another one")
        writable_folder(self.folder)
        self._layers = list(layers)
        self._shard_bytes = shard_bytes
        self._waiting: dict[str, list[Tensor]] = {name: [] for name in layers}
        self._shards = 0

    def append(self, layer: str, rows: Tensor) -> None:
        """Adds rows [n, d] of a layer; they are copied."""
        self._waiting[layer].append(rows.detach().to("cpu", copy=True))

    def flush_if_full(self) -> None:
        """Writes a shard when enough rows wait; call when all layers have the same rows."""
        waiting = sum(t.nbytes for rows in self._waiting.values() for t in rows)
        if waiting >= self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that wait, if any, as one shard."""
        tensors = {name: torch.cat(rows) for name, rows in self._waiting.items() if rows}
        if not tensors:
            return
        metadata = {LAYERS_KEY: json.dumps(self._layers)}
        path = self.folder / f"rows-{self._shards:05d}.safetensors"
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata)
        self._shards += 1
        self._waiting = {name: [] for name in self._layers}

    def __enter__(self) -> DumpWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.flush()
