"""Activation dumps on disk: layers of rows, read in blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from aniso.dumps._open import parts_of
from aniso.dumps._read_ahead import Waiting, read_ahead
from aniso.errors import InputError
from aniso.state import Block

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from torch import Tensor

    from aniso.dumps._file_reads import Scratch
    from aniso.dumps._part import Part

# Large enough that the read runs at the disk's rate, small enough to stay in the last-level cache.
_BLOCK_BYTES = 1 << 25
_T = TypeVar("_T")


@dataclass(frozen=True)
class DumpBlock:
    """Some rows of one layer, and where they lie.

    Attributes:
        rows: [n, d].
        path: The file.
        block: Which rows of which source.
        ids: What is stored per row: of token_ids, attention_mask and document those that are
            there, [n] each.
    """

    rows: Tensor
    path: Path
    block: Block
    ids: dict[str, Tensor] = field(default_factory=dict)

    @property
    def mask(self) -> Tensor | None:
        """The rows that the dump's attention mask keeps, bool [n]; None without one."""
        mask = self.ids.get("attention_mask")
        return None if mask is None else mask != 0


@dataclass(frozen=True)
class StoredBlock:
    """A block before it is read."""

    part: Part
    block: Block
    ids: tuple[Part, ...]

    @property
    def rows(self) -> int:
        """How many rows."""
        return self.block.stop - self.block.start

    def read(self, scratch: Scratch | None = None) -> DumpBlock:
        """Its rows and ids."""
        start, stop = self.block.start, self.block.stop
        ids = {part.id_name or part.layer: part.read(start, stop, None) for part in self.ids}
        rows = self.part.read(start, stop, scratch)
        self.part.check_unchanged()
        return DumpBlock(rows, self.part.path, self.block, ids)


class DumpLayer:
    """The rows of one layer over all files of a dump."""

    def __init__(self, name: str, parts: list[Part], ids: Sequence[Part] = ()) -> None:
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
        self._ids = tuple(ids)

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

    @property
    def ids(self) -> tuple[str, ...]:
        """What is stored per row beside the rows: token_ids, attention_mask, document."""
        return tuple(dict.fromkeys(i.id_name or "" for p in self.parts for i in self._ids_of(p)))

    @property
    def block_rows(self) -> int:
        """Rows of a block; fewer at the end of a file."""
        return max(1, _BLOCK_BYTES // (self.dim * self.dtype.itemsize))

    def stored_blocks(self, done: Callable[[str], int] = lambda source: 0) -> list[StoredBlock]:
        """The blocks in order, none of them read.

        Args:
            done: Rows of a source to pass over, by the source's identity.
        """
        step, found = self.block_rows, []
        for part in self.parts:
            source, ids = part.source, self._ids_of(part)
            for start in range(done(source), part.shape[0], step):
                stop = min(part.shape[0], start + step)
                found.append(StoredBlock(part, Block(source, start, stop), ids))
        return found

    def blocks(self, done: Callable[[str], int] = lambda source: 0) -> Iterator[DumpBlock]:
        """The rows in blocks, the next one read while the caller works on this one.

        Args:
            done: Rows of a source to pass over, by the source's identity.
        """
        return read_blocks(self.stored_blocks(done), Waiting(), reuse=False)

    def mask_of(self, part: Part) -> Part | None:
        """The attention mask of a part's rows; None without one."""
        return next((i for i in self._ids_of(part) if i.id_name == "attention_mask"), None)

    def _ids_of(self, part: Part) -> tuple[Part, ...]:
        """The ids of a part's rows: one of each kind, as many as it has rows, in the same home."""
        alone = bool(part.key) or len(self.parts) == 1
        fit = [i for i in self._ids if i.home == part.home and i.shape[0] == part.shape[0]]
        return tuple({i.id_name: i for i in fit}.values()) if alone else ()


def read_blocks(
    blocks: Sequence[StoredBlock], waiting: Waiting, *, reuse: bool = True
) -> Iterator[DumpBlock]:
    """Blocks read ahead; with `reuse` asking for the next overwrites the rows of the one before."""
    return read_ahead([block.read for block in blocks], waiting, reuse=reuse)


class Dump:
    """Layers of activations in a file or folder.

    Attributes:
        path: The file or folder.
        layers: Names of the layers, in order of execution where the writer stated it.
    """

    def __init__(self, path: Path, parts: list[Part]) -> None:
        self.path = path
        self._ids = [part for part in parts if part.id_name]
        parts = [part for part in parts if not part.id_name]
        found = {part.layer for part in parts}
        stated = dict.fromkeys(name for part in parts for name in part.stated_layers)
        self._parts: dict[str, list[Part]] = {name: [] for name in stated if name in found}
        for part in parts:
            self._parts.setdefault(part.layer, []).append(part)
        self.layers = tuple(self._parts)

    def __getitem__(self, layer: str) -> DumpLayer:
        if layer not in self._parts:
            raise InputError(f"{self.path} has no layer {layer!r}; it has {', '.join(self.layers)}")
        return DumpLayer(layer, self._parts[layer], self._ids)

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

    | what | layers |
    |---|---|
    | `.safetensors` | one per tensor, or per layer of `hidden_states` [n, layers, d] |
    | `.npy`, `.bin`, `.raw` | one, named after the file; what a file cannot say, FILE.json says |
    | `.parquet`, `.arrow`, `.feather` | one per column of vectors (package pyarrow) |
    | `.pt`, `.pth` | one per tensor of a dict, loaded without running code |
    | Zarr folder | one per array (package zarr) |
    | folder of one kind | files in natural order, rows of one name are one layer in that order |

    A folder with an index of tensors (`*.safetensors.index.json`), or that a Hugging Face dataset
    was saved to, is read by its index. Vectors of integers named token_ids, attention_mask or
    document are ids of the rows: every block carries them.

    Raises:
        InputError: nothing there, another format, an empty or damaged file, a package missing.

    Example:
        >>> open_dump("dump/").layers  # doctest: +SKIP
        ('embeddings', 'encoder.layer.0')
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no file or folder {path}; pass a dump to read")
    parts = parts_of(path)
    if not parts:
        raise InputError(f"{path} holds no arrays; pass a dump with at least one layer")
    return Dump(path, parts)
