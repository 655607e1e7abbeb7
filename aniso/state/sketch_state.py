"""The additive sketch of the second moments of rows too wide for a Gram matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError
from aniso.metrics.sketch import PROBES, SketchedAxes, SketchSums, random_directions, sketched_axes
from aniso.ops._double import finite_rows
from aniso.state.file import load_state, save_state, take_over
from aniso.state.layer_state import checked_rows
from aniso.state.sources import Block, Sources

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_KIND = "SketchState"
# Float64 numbers of a block of rows.
_BLOCK_ELEMENTS = 1 << 21


class SketchState:
    """Σ x (xᵀΩ) for s random directions Ω: leading axes of rows whose d × d Gram has no room.

    One pass, O(d s) numbers, additive over rows: sketches of disjoint rows, drawn with one seed,
    merge into the sketch of their union. For d up to some thousands `LayerState.principal_axes`
    is exact.

    Args:
        dim: d, the width of the rows.
        size: s, at most d; twice the number of axes that are wanted, or more.
        seed: Of Ω; only states of one seed merge.
        device: Where the sums live; rows are brought there.

    Raises:
        InputError: dim not positive or size not in 1..dim.

    Example:
        >>> state = SketchState(50, 4)
        >>> state.update(torch.outer(torch.arange(9.0), torch.ones(50)))
        >>> axes = state.principal_axes(1)
        >>> bool(axes.upper[0] - axes.lower[0] < 1e-4 * axes.singular_values[0])
        True
    """

    def __init__(
        self, dim: int, size: int, *, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        if not 1 <= size <= dim:
            raise InputError(f"dim is {dim}, size {size}; a sketch has 1 to dim columns")
        self.sums = SketchSums.zeros(random_directions(dim, size, seed).to(device))
        self.sources = Sources()

    @property
    def dim(self) -> int:
        """d, the width of the rows."""
        return len(self.sums.test)

    @property
    def size(self) -> int:
        """s, the columns of the sketch."""
        return self.sums.test.shape[1] - PROBES

    @property
    def rows(self) -> int:
        """Rows kept: finite, not masked."""
        return self.sums.rows

    def update(self, x: Any, mask: Any = None, *, block: Block | None = None) -> None:
        """Adds rows; those that are not finite are left out and counted.

        Args:
            x: Rows, [n, d] or [..., d], float64/float32/float16/bfloat16.
            mask: Rows to keep, bool, x's shape without its last axis. Default: all.
            block: Where the rows come from; rows of a known block never count twice.

        Raises:
            InputError: another width or dtype, or rows counted already.

        Time O(n d s), products in float64.
        """
        rows, kept = checked_rows(x, mask, self.dim, self.sums.test.device)
        sources = self.sources if block is None else self.sources.add(block)
        step = max(1, _BLOCK_ELEMENTS // self.dim)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            self._fold(rows[part].to(torch.float64), None if kept is None else kept[part])
        self.sources = sources

    def _fold(self, rows: Tensor, mask: Tensor | None) -> None:
        sums = self.sums
        keep = finite_rows(rows, mask)
        masked = 0 if mask is None else int((~mask).sum())
        count = int(keep.sum())
        if not sums.rows and count:
            sums.pilot.copy_(torch.where(keep[:, None], rows, 0.0).sum(dim=0) / count)
        y = torch.where(keep[:, None], rows - sums.pilot, 0.0)
        sums.product.addmm_(y.T, y @ sums.test)
        sums.total.add_(y.sum(dim=0))
        sums.square.add_(y.square().sum())
        sums.counts.add_(sums.counts.new_tensor([count, len(rows) - count - masked, masked]))

    def merge(self, other: SketchState) -> SketchState:
        """The state of both row sets; neither operand changes.

        Raises:
            InputError: another kind, width, size or seed, or both hold the same source rows.
        """
        if not isinstance(other, SketchState) or other is self:
            what = "itself" if other is self else f"a {type(other).__name__}"
            raise InputError(f"cannot merge a state with {what}; pass another SketchState")
        moved = {name: t.to(self.sums.test.device) for name, t in other.sums.tensors().items()}
        if not torch.equal(self.sums.test, moved["test"]):
            raise InputError(
                f"cannot merge {self!r} with {other!r} of other random directions; build both with "
                "one dim, size and seed"
            )
        merged = SketchState(1, 1)
        merged.sources = self.sources.merge(other.sources)
        merged.sums = self.sums.merge(SketchSums(**moved))
        return merged

    def __add__(self, other: SketchState) -> SketchState:
        """Same as `merge`."""
        return self.merge(other)

    def principal_axes(self, k: int, *, center: bool = False) -> SketchedAxes:
        """The k leading singular values and right vectors of all rows seen, with their bounds.

        Args:
            k: How many, at most size.
            center: Subtract the mean row: principal components.

        Raises:
            InputError: no rows, or k not in 0..size.

        Time O(d s²). See `metrics.sketch.sketched_axes`.
        """
        return sketched_axes(self.sums, k, center=center)

    def state_dict(self) -> dict[str, Tensor]:
        """The accumulators by name; they share memory with the state."""
        return self.sums.tensors()

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Takes over accumulators as `state_dict` gives them.

        Raises:
            InputError: names or shapes that do not belong to this state.
        """
        take_over(self.state_dict(), tensors, f"dim {self.dim}, size {self.size}")

    def save(self, path: str | Path, *, layer: str | None = None) -> None:
        """Writes the state to a safetensors file, atomically, with schema and sources."""
        save_state(path, self.state_dict(), self.sources, layer, _KIND)

    @classmethod
    def load(cls, path: str | Path) -> SketchState:
        """Reads a state that `save` wrote.

        Raises:
            InputError: no such file, not a SketchState, damaged, or of a newer schema.
        """
        tensors, sources = load_state(path, _KIND)
        test = tensors.get("test")
        if test is None or test.ndim != 2 or test.shape[1] <= PROBES:
            raise InputError(f"{path} has no random directions; it is damaged, save it again")
        state = cls(len(test), test.shape[1] - PROBES)
        state.load_state_dict(tensors)
        state.sources = sources
        return state

    def __repr__(self) -> str:
        return f"<SketchState dim {self.dim}, size {self.size}, {self.rows} rows>"
