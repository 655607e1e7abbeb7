"""Activation dumps on disk: layers of rows, read in blocks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from aniso._names import natural_key
from aniso.dumps.npy import npy_parts
from aniso.dumps.safetensors import safetensors_parts
from aniso.errors import InputError
from aniso.state import Block, is_state

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    import torch
    from torch import Tensor

    from aniso.dumps._part import Part

# Large enough that the read runs at the disk's rate, small enough to stay in the last-level cache.
_BLOCK_BYTES = 1 << 25
_READERS: dict[str, Callable[[Path], list[Part]]] = {
    ".safetensors": safetensors_parts,
    ".npy": npy_parts,
}
_T = TypeVar("_T")


@dataclass(frozen=True)
class DumpBlock:
    """Some rows of one layer, and where they lie."""

    rows: Tensor
    path: Path
    block: Block


class DumpLayer:
    """The rows of one layer over all files of a dump."""

    def __init__(self, name: str, parts: list[Part]) -> None:
        for part in parts:
            part.check()
            if (part.shape[1], part.dtype) != (parts[0].shape[1], parts[0].dtype):
                raise InputError(
                    f"layer {name} is {parts[0].stored_dtype} with {parts[0].shape[1]} columns in "
                    f"{parts[0].path}, but {part.stored_dtype} with {part.shape[1]} in "
                    f"{part.path}; all files of a dump must agree"
                )
        self.name = name
        self.parts = parts

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(part.shape[0] for part in self.parts)

    @property
    def dim(self) -> int:
        """Columns."""
        return self.parts[0].shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The rows' torch dtype."""
        dtype = self.parts[0].dtype
        if dtype is None:
            raise InputError(f"layer {self.name} has no dtype that aniso reads")
        return dtype

    @property
    def bytes(self) -> int:
        """Size of all rows."""
        return self.rows * self.dim * self.dtype.itemsize

    def blocks(self, done: Callable[[str], int] = lambda source: 0) -> Iterator[DumpBlock]:
        """The rows in blocks, the next one read while the caller works on this one.

        Args:
            done: Rows of a source to pass over, by the source's identity.
        """
        step = max(1, _BLOCK_BYTES // (self.dim * self.dtype.itemsize))
        tasks = []
        for part in self.parts:
            source = part.source
            for start in range(done(source), part.shape[0], step):
                stop = min(part.shape[0], start + step)
                tasks.append(_reader(part, Block(source, start, stop)))
        return _prefetched(tasks)


def _reader(part: Part, block: Block) -> Callable[[], DumpBlock]:
    return lambda: DumpBlock(part.read(block.start, block.stop), part.path, block)


def _prefetched(tasks: list[Callable[[], _T]]) -> Iterator[_T]:
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="aniso-read") as pool:
        upcoming = pool.submit(tasks[0]) if tasks else None
        for task in [*tasks[1:], None]:
            if upcoming is None:
                return
            current = upcoming.result()
            upcoming = None if task is None else pool.submit(task)
            yield current


class Dump:
    """Layers of activations in a file or folder.

    Attributes:
        path: The file or folder.
        layers: Names of the layers, in order of execution where the writer stated it.
    """

    def __init__(self, path: Path, parts: list[Part]) -> None:
        self.path = path
        found = {part.layer for part in parts}
        stated = dict.fromkeys(name for part in parts for name in part.stated_layers)
        self._parts: dict[str, list[Part]] = {name: [] for name in stated if name in found}
        for part in parts:
            self._parts.setdefault(part.layer, []).append(part)
        self.layers = tuple(self._parts)

    def __getitem__(self, layer: str) -> DumpLayer:
        if layer not in self._parts:
            raise InputError(f"{self.path} has no layer {layer!r}; it has {', '.join(self.layers)}")
        return DumpLayer(layer, self._parts[layer])

    def __iter__(self) -> Iterator[DumpBlock]:
        """All blocks, layer by layer."""
        for layer in self.layers:
            yield from self[layer].blocks()

    @property
    def rows(self) -> int:
        """Rows per layer; InputError when layers differ."""
        return self._common("rows", [self[name].rows for name in self.layers])

    @property
    def dim(self) -> int:
        """Columns; InputError when layers differ."""
        return self._common("dim", [self[name].dim for name in self.layers])

    @property
    def dtype(self) -> torch.dtype:
        """The rows' dtype; InputError when layers differ."""
        return self._common("dtype", [self[name].dtype for name in self.layers])

    def _common(self, what: str, values: list[_T]) -> _T:
        if any(value != values[0] for value in values):
            raise InputError(f"the layers of {self.path} differ in {what}; ask dump[layer].{what}")
        return values[0]


def open_dump(path: str | os.PathLike[str]) -> Dump:
    """Opens a dump of activations without reading its rows.

    Args:
        path: A .npy file (one layer, named after the file), a .safetensors file (one layer per
            tensor), or a folder of either; the files of a folder are taken in natural order, and
            tensors of one name are one layer, its rows in that order.

    Raises:
        InputError: nothing there, another format, an empty or damaged file.

    Example:
        >>> open_dump("dump/").layers  # doctest: +SKIP
        ('embeddings', 'encoder.layer.0')
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no file or folder {path}; pass a dump to read")
    parts = [part for file in _files(path) for part in _read_header(file)]
    if not parts:
        raise InputError(f"{path} holds no arrays; pass a dump with at least one layer")
    return Dump(path, parts)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [
        file
        for file in path.iterdir()
        if file.suffix in _READERS and not file.name.startswith(".") and not is_state(file)
    ]
    if not found:
        raise InputError(f"folder {path} has no .safetensors and no .npy file; pass a dump to read")
    if len({file.suffix for file in found}) > 1:
        raise InputError(f"folder {path} has .safetensors and .npy files; a dump is of one kind")
    return sorted(found, key=lambda file: natural_key(file.name))


def _read_header(path: Path) -> list[Part]:
    reader = _READERS.get(path.suffix)
    if is_state(path):
        raise InputError(f"{path} is a saved state, not a dump; load it with LayerState.load")
    if reader is None:
        raise InputError(f"{path} is neither .npy nor .safetensors; convert it to one of them")
    if not path.exists():
        raise InputError(f"{path} is a link to nothing; remove it or mend it")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); write it again")
    return reader(path)
