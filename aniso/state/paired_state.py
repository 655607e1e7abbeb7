"""The additive statistics of two paired sources: state(A ∪ B) = state(A) + state(B)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError
from aniso.metrics import Comparison, compare_sums
from aniso.metrics.paired_sums import PairedSums
from aniso.ops import cross_gram_into, gram_into, row_moments_into
from aniso.ops._arrays import as_tensor, check_mask, check_pairs
from aniso.ops._double import finite_rows
from aniso.state.file import load_state, save_state, take_over
from aniso.state.sources import Block, Sources

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from aniso.metrics.hsic import HsicSums
    from aniso.moments import RowMoments

_KIND = "PairedState"
# As many float64 numbers of both sources together as an op takes in one block.
_BLOCK_ELEMENTS = 1 << 21


class PairedState:
    """Sums over paired rows (x_i, y_i), from which a `Comparison` follows without N × N kernels.

    A pair counts when neither row is masked or non-finite; it is in the cosine statistics when
    neither row is zero (`zero_rows` counts the others). The raw sums are taken about an origin per
    source, the mean of the first block: a large common offset (rogue dimensions) does not cancel.

    Float64 throughout: six matrices, 2dx² + 2dy² + 2dx·dy numbers.

    Args:
        dim_x: Width of the first source's rows.
        dim_y: Width of the second's.
        device: Where the sums live; rows are brought there.

    Raises:
        InputError: a width is not positive, or there is no room for the matrices.

    Example:
        >>> state = PairedState(8, 8)
        >>> x = torch.randn(20, 8)
        >>> state.update(x, 3 * x.flip(1) + 100)
        >>> round(state.compute().debiased_cka, 5)
        1.0
    """

    def __init__(self, dim_x: int, dim_y: int, *, device: torch.device | str = "cpu") -> None:
        if min(dim_x, dim_y) < 1:
            raise InputError(f"dims are {dim_x} and {dim_y}; they are widths of rows, at least 1")
        try:
            self.sums = PairedSums.zeros(dim_x, dim_y, device)
        except RuntimeError as error:
            needed = 16 * (dim_x**2 + dim_y**2 + dim_x * dim_y) / 1e9
            raise InputError(
                f"the six matrices of {dim_x:,} and {dim_y:,} columns need {needed:,.0f} GB, which "
                "cannot be had; compare two LayerStates without Gram instead"
            ) from error
        self.sources = Sources()

    @property
    def dims(self) -> tuple[int, int]:
        """The widths of the rows, dx and dy."""
        return len(self.sums.origin_x), len(self.sums.origin_y)

    @property
    def rows(self) -> int:
        """Pairs that count."""
        return self.sums.rows

    @property
    def device(self) -> torch.device:
        """Where the sums live."""
        return self.sums.origin_x.device

    def update(self, x: Any, y: Any, mask: Any = None, *, block: Block | None = None) -> None:
        """Adds paired rows.

        Args:
            x: Rows, [n, dx] or [..., dx], float64/float32/float16/bfloat16.
            y: Rows, the shape of x but for the last axis; row i belongs to row i of x.
            mask: Pairs to keep, bool, x's shape without its last axis.
            block: Where the pairs come from; pairs of a known block never count twice.

        Raises:
            InputError: another width or dtype, shapes that do not pair, or pairs counted already.

        Time O(n (dx + dy)²). The result does not depend on the order of updates beyond rounding.
        """
        rows_x, rows_y, kept = self._checked(x, y, mask)
        sources = self.sources if block is None else self.sources.add(block)
        step = max(1, _BLOCK_ELEMENTS // sum(self.dims))
        for start in range(0, len(rows_x), step):
            part = slice(start, start + step)
            self._fold(rows_x[part], rows_y[part], None if kept is None else kept[part])
        self.sources = sources

    def _checked(self, x: Any, y: Any, mask: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        a, b = as_tensor(x), as_tensor(y, "y")
        keep = None if mask is None else as_tensor(mask, "mask")
        if a.shape[:-1] != b.shape[:-1] or (keep is not None and keep.shape != a.shape[:-1]):
            shapes = f"x has shape {list(a.shape)}, y {list(b.shape)}"
            shapes += "" if keep is None else f", mask {list(keep.shape)}"
            raise InputError(
                f"{shapes}; paired rows agree in all axes but the last, and a mask has those axes"
            )
        a, b = (t.reshape(-1, t.shape[-1]) if t.ndim > 2 else t for t in (a, b))
        a, b = check_pairs(a.to(self.device), b.to(self.device))
        if (a.shape[1], b.shape[1]) != self.dims:
            raise InputError(
                f"rows have {a.shape[1]} and {b.shape[1]} columns, this state has dims "
                f"{self.dims[0]} and {self.dims[1]}"
            )
        return a, b, None if keep is None else check_mask(keep.reshape(-1), a)

    def _fold(self, x: Tensor, y: Tensor, mask: Tensor | None) -> None:
        finite = finite_rows(y, finite_rows(x))
        allowed = torch.ones_like(finite) if mask is None else mask
        keep = finite & allowed
        both = keep & (x != 0).any(dim=1) & (y != 0).any(dim=1)
        tallies = (keep, keep & ~both, allowed & ~finite, ~allowed)
        counts = torch.stack([rows.sum() for rows in tallies])
        # Rows of half precision in float64: the kernels would add up 128 of them in float32.
        wide_x, wide_y = (torch.where(keep[:, None], t, 0).to(torch.float64) for t in (x, y))
        if not self.rows:
            self.sums.origin_x.copy_(wide_x.sum(0) / counts[0].clamp(min=1))
            self.sums.origin_y.copy_(wide_y.sum(0) / counts[0].clamp(min=1))
        _add_moments(self.sums.moments_x, wide_x, keep, both, counts)
        _add_moments(self.sums.moments_y, wide_y, keep, both, counts)
        _add_gram(wide_x, both, None, self.sums.unit_xx)
        _add_gram(wide_y, both, None, self.sums.unit_yy)
        cross_gram_into(x, y, both, None, self.sums.unit_xy)
        a = torch.where(keep[:, None], wide_x - self.sums.origin_x, 0.0)
        b = torch.where(keep[:, None], wide_y - self.sums.origin_y, 0.0)
        _add_hsic(self.sums.xx, a, a, counts[0])
        _add_hsic(self.sums.xy, a, b, counts[0])
        _add_hsic(self.sums.yy, b, b, counts[0])

    def merge(self, other: PairedState) -> PairedState:
        """The state of both sets of pairs; neither operand changes.

        Raises:
            InputError: other widths, or both hold the same source rows.
        """
        if not isinstance(other, PairedState) or other is self:
            what = "itself" if other is self else f"a {type(other).__name__}"
            raise InputError(f"cannot merge a state with {what}; pass another PairedState")
        if other.dims != self.dims:
            raise InputError(
                f"cannot merge dims {self.dims} with dims {other.dims}; both must have the same"
            )
        merged = PairedState(1, 1)
        merged.sources = self.sources.merge(other.sources)
        merged.sums = self.sums.merge(other.sums.map(lambda t: t.to(self.device)))
        return merged

    def __add__(self, other: PairedState) -> PairedState:
        """Same as `merge`."""
        return self.merge(other)

    def compute(self) -> Comparison:
        """RSA-Pearson, debiased CKA and both sources' metrics so far. Time O(dx³ + dy³)."""
        return compare_sums(self.sums)

    def state_dict(self) -> dict[str, Tensor]:
        """The accumulators by name; they share memory with the state."""
        return self.sums.tensors()

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Takes over accumulators as `state_dict` gives them.

        Raises:
            InputError: names or shapes that do not belong to this state.
        """
        take_over(self.state_dict(), tensors, f"dims {self.dims}")

    def save(self, path: str | Path, *, layer: str | None = None) -> None:
        """Writes the state to a safetensors file, atomically, with schema and sources."""
        save_state(path, self.state_dict(), self.sources, layer, _KIND)

    @classmethod
    def load(cls, path: str | Path) -> PairedState:
        """Reads a state that `save` wrote.

        Raises:
            InputError: no such file, not a PairedState, damaged, or of a newer schema.
        """
        tensors, sources = load_state(path, _KIND)
        dims = [len(tensors[name]) for name in ("origin_x", "origin_y") if name in tensors]
        if len(dims) < 2:
            raise InputError(f"{path} has no origins; the file is damaged, save the state again")
        state = cls(*dims)
        state.load_state_dict(tensors)
        state.sources = sources
        return state

    def __repr__(self) -> str:
        return f"<PairedState dims {self.dims[0]} and {self.dims[1]}, {self.rows} rows>"


def _add_moments(
    moments: RowMoments, rows: Tensor, keep: Tensor, both: Tensor, counts: Tensor
) -> None:
    """Adds S1 of the kept rows; directions only of those that have one in both sources."""
    total = moments.counts + counts
    row_moments_into(rows, both, *moments.tensors())
    rest = torch.zeros_like(moments.sums)
    row_moments_into(rows, keep & ~both, rest, *moments.tensors()[1:])
    moments.sums[0::2] += rest[0::2]
    moments.counts.copy_(total)


def _add_gram(rows: Tensor, mask: Tensor | None, raw: Tensor | None, unit: Tensor | None) -> None:
    """Adds the Gram of float64 rows, which no kernel rounds: totals and noise say nothing new."""
    spare = rows.new_zeros(2, rows.shape[1])
    origin = torch.zeros_like(spare)
    gram_into(rows, mask, origin, raw, unit, spare, torch.zeros_like(spare[:, 0]))


def _add_hsic(sums: HsicSums, a: Tensor, b: Tensor, count: Tensor) -> None:
    """Adds rows about their origins; rows that do not count are zero."""
    aa, bb = (a * a).sum(dim=1), (b * b).sum(dim=1)
    sums.scalars.add_(torch.stack([count, aa.sum(), bb.sum(), aa @ bb]))
    sums.sum_a.add_(a.sum(dim=0))
    sums.sum_b.add_(b.sum(dim=0))
    sums.weighted_a.addmv_(a.T, bb)
    sums.weighted_b.addmv_(b.T, aa)
    if a is b:
        _add_gram(a, None, sums.cross, None)
    else:
        cross_gram_into(a, b, None, sums.cross, None)
