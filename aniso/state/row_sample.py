"""A uniform sample of rows that grows, merges and never depends on order (state S6)."""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError
from aniso.metrics import PairDesign
from aniso.ops import row_moments
from aniso.ops._arrays import as_tensor, check_mask, check_rows
from aniso.state.file import load_state, save_state
from aniso.state.sources import Sources

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_KIND = "RowSample"


class RowSample:
    """Rows, or whole documents, drawn uniformly without replacement from all rows seen.

    A bottom-k sample: every unit has a key, a 64-bit hash of seed, source and row or document id,
    and units are kept in the order of their keys until `size` rows are reached. So, given ids or
    documents, the sample depends on the units alone: not on their order, blocks or machines; and
    samples of disjoint rows merge into the sample of their union. Rows without a direction (masked,
    non-finite, zero) are no part of it. At most size − 1 + the longest document's rows are kept, on
    the CPU.

    Args:
        size: Rows to keep.
        dim: d, the width of the rows.
        seed: Another seed draws another sample; only samples of one seed merge.

    Attributes:
        rows: The sample, [m, dim], in the order of keys.
        keys: The key of each row, [m] int64; rows of one document share theirs.
        seen: Units (rows or documents) to choose from, so far.
        seen_rows: Rows to choose from, so far.

    Raises:
        InputError: size or dim is not positive.

    Reference: Cohen & Kaplan, "Summarizing Data Using Bottom-k Sketches", PODC 2007.

    Example:
        >>> sample = RowSample(100, 8)
        >>> sample.update(torch.randn(5000, 8))
        >>> sample.rows.shape, sample.seen
        (torch.Size([100, 8]), 5000)
    """

    def __init__(self, size: int, dim: int, *, seed: int = 0) -> None:
        if size < 1 or dim < 1:
            raise InputError(f"size is {size}, dim {dim}; both are at least 1")
        self.size, self.seed = size, seed
        self.rows = torch.empty(0, dim)
        self.keys = torch.empty(0, dtype=torch.int64)
        self.seen = self.seen_rows = 0
        self._offered = self._longest = 0
        self._by_document: bool | None = None

    @property
    def dim(self) -> int:
        """d, the width of the rows."""
        return int(self.rows.shape[1])

    @property
    def documents(self) -> Tensor:
        """The unit of each sampled row, numbered from 0, [m] int64."""
        numbers: Tensor = torch.unique_consecutive(self.keys, return_inverse=True)[1]
        return numbers

    @property
    def design(self) -> PairDesign:
        """How the rows were drawn, for the intervals of `aniso.metrics`."""
        return PairDesign.of_documents(
            torch.unique_consecutive(self.keys, return_counts=True)[1].numpy(),
            documents=self.seen,
            rows=self.seen_rows,
            largest=self._longest,
            least=min(self.seen, math.ceil(self.size / max(1, self._longest))),
        )

    def update(
        self, x: Any, *, ids: Any = None, documents: Any = None, mask: Any = None, source: str = ""
    ) -> None:
        """Offers rows to the sample.

        Args:
            x: Rows, [n, d], float64/float32/float16/bfloat16.
            ids: Row numbers, [n] integers, unique within their source. Default: rows are numbered
                as they come, which makes the sample depend on their order.
            documents: Document of each row, [n] integers: whole documents are sampled, and a
                document comes whole, in one update.
            mask: Rows that count, [n] bool. Default: all.
            source: Name of the file or stream that `ids` and `documents` count in.

        Raises:
            InputError: another width or dtype, ids or documents that are not integers [n] or not
                new, or documents here and rows there.

        Time O(n d), one read of x, and a sort of the block's keys; only rows kept are copied.
        """
        rows = check_rows(as_tensor(x))
        if rows.shape[1] != self.dim:
            raise InputError(f"rows have {rows.shape[1]} columns, this sample has dim {self.dim}")
        if ids is not None and documents is not None:
            raise InputError("both ids and documents were given; a sample draws one or the other")
        by_document = documents is not None
        self._check_mode(by_document)
        names = self._names(rows, documents if by_document else ids, by_document)
        kept = check_mask(mask, rows)
        keys, count = hash_keys(names, self.seed, source), None
        if len(self.rows) >= self.size and not by_document:
            # Once full, few keys matter: the others are only counted, at the speed of memory.
            count = row_moments(rows, mask=kept).directions
            near = keys <= int(self.keys[-1])
            kept = near if kept is None else near & kept
        places = _with_direction(rows, kept)
        keys = keys[places]
        first = self._first(keys)
        self._fold(rows[places[first]].cpu(), keys[first].cpu())
        self._by_document = by_document
        self._count(keys, count)
        self._offered += len(rows)

    def _check_mode(self, by_document: bool | None) -> None:
        if None not in (by_document, self._by_document) and by_document != self._by_document:
            raise InputError(
                "rows and documents cannot be drawn into one sample; give documents to every "
                "update or to none"
            )

    def _names(self, rows: Tensor, names: Any, by_document: bool) -> Tensor:
        if names is None:
            return torch.arange(self._offered, self._offered + len(rows), device=rows.device)
        what = "documents" if by_document else "ids"
        tensor = as_tensor(names, what)
        if tensor.shape != rows.shape[:1] or tensor.is_floating_point() or tensor.is_complex():
            raise InputError(
                f"{what} are {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}; "
                f"they must be integers [{len(rows)}], one per row"
            )
        if not by_document and len(tensor.unique()) < len(tensor):
            raise InputError("ids repeat; every row of a source has its own")
        return tensor.to(rows.device, torch.int64)

    def _count(self, keys: Tensor, rows: int | None) -> None:
        sizes = keys.unique(return_counts=True)[1] if self._by_document else torch.ones_like(keys)
        self.seen += len(sizes) if rows is None else rows
        self.seen_rows += len(keys) if rows is None else rows
        self._longest = max(self._longest, int(sizes.max()) if len(sizes) else 0)

    def _fold(self, rows: Tensor, keys: Tensor) -> None:
        """Keeps the units of smallest key among ours and these."""
        if not len(keys):
            return
        if torch.isin(keys, self.keys).any():
            raise InputError(
                "these rows or documents are in the sample already; documents come whole, and "
                "rows of different files need a source or ids"
            )
        if len(self.keys):
            rows, keys = torch.cat([self.rows, rows]), torch.cat([self.keys, keys])
        first = self._first(keys)
        self.rows, self.keys = rows[first], keys[first]

    def _first(self, keys: Tensor) -> Tensor:
        """Places of the units of smallest key, until `size` rows are reached."""
        order = keys.argsort(stable=True)
        sizes = torch.unique_consecutive(keys[order], return_counts=True)[1]
        before = sizes.cumsum(0) - sizes
        return order[: int(sizes[before < self.size].sum())]

    def merge(self, other: RowSample) -> RowSample:
        """The sample of both row sets; neither operand changes.

        Raises:
            InputError: another size, dim or seed, rows here and documents there, or both hold the
                same rows.
        """
        if not isinstance(other, RowSample) or _shape(other) != _shape(self):
            what = repr(other) if isinstance(other, RowSample) else f"a {type(other).__name__}"
            raise InputError(f"cannot merge {self!r} with {what}; size, dim and seed must agree")
        merged = RowSample(self.size, self.dim, seed=self.seed)
        self._check_mode(other._by_document)
        merged._by_document = other._by_document if self._by_document is None else self._by_document
        for part in (self, other):
            merged._fold(part.rows, part.keys)
            merged.seen += part.seen
            merged.seen_rows += part.seen_rows
            merged._offered += part._offered
            merged._longest = max(merged._longest, part._longest)
        return merged

    def __add__(self, other: RowSample) -> RowSample:
        """Same as `merge`."""
        return self.merge(other)

    def state_dict(self) -> dict[str, Tensor]:
        """The sample and its counts by name."""
        mode = -1 if self._by_document is None else int(self._by_document)
        counts = [self.size, self.seed, self.seen, self.seen_rows]
        counts += [self._offered, self._longest, mode]
        return {"rows": self.rows, "keys": self.keys, "counts": torch.tensor(counts)}

    def save(self, path: str | Path, *, layer: str | None = None) -> None:
        """Writes the sample to a safetensors file, atomically."""
        save_state(path, self.state_dict(), Sources(), layer, kind=_KIND)

    @classmethod
    def load(cls, path: str | Path) -> RowSample:
        """Reads a sample that `save` wrote.

        Raises:
            InputError: no such file, not a sample, damaged, or of a newer schema.
        """
        tensors, _ = load_state(path, kind=_KIND)
        size, seed, seen, seen_rows, offered, longest, mode = tensors["counts"].tolist()
        sample = cls(size, tensors["rows"].shape[1], seed=seed)
        sample.rows, sample.keys = tensors["rows"], tensors["keys"]
        sample.seen, sample.seen_rows = seen, seen_rows
        sample._offered, sample._longest = offered, longest
        sample._by_document = None if mode < 0 else bool(mode)
        return sample

    def __repr__(self) -> str:
        size, dim, seed = _shape(self)
        return f"<RowSample size {size}, dim {dim}, seed {seed}, of {self.seen_rows} rows>"


def hash_keys(names: Tensor, seed: int, source: str) -> Tensor:
    """64-bit hashes of (seed, source, name), int64; no two names of one source share theirs.

    SplitMix64 (Steele, Lea, Flood 2014) at position `name` of the stream that starts at a digest
    of seed and source; int64 arithmetic wraps as uint64 does.
    """
    digest = blake2b(f"{seed}\0{source}".encode(), digest_size=8).digest()
    start = int.from_bytes(digest, "little", signed=True)
    z = start + names * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _with_direction(rows: Tensor, kept: Tensor | None) -> Tensor:
    """Places of the rows that are kept, finite and not zero."""
    if kept is not None:
        chosen = kept.nonzero()[:, 0]
        return chosen[_with_direction(rows[chosen], None)]
    length = torch.linalg.vector_norm(rows, dim=1)
    good = (length > 0) & (length < math.inf)  # false for NaN
    # Squares may leave the range of the dtype where values do not: the largest value decides.
    doubt = (~good).nonzero()[:, 0]
    largest = torch.linalg.vector_norm(rows[doubt], math.inf, dim=1)
    good[doubt] = (largest > 0) & (largest < math.inf)
    places: Tensor = good.nonzero()[:, 0]
    return places


def _signed(constant: int) -> int:
    return constant - (1 << 64)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _shape(sample: RowSample) -> tuple[int, int, int]:
    return sample.size, sample.dim, sample.seed
