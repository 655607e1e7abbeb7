"""The additive statistics of one layer: state(A ∪ B) = state(A) + state(B)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aniso.errors import InputError
from aniso.metrics import (
    GroupCosine,
    LayerMetrics,
    PrincipalAxes,
    cosines_of_groups,
    layer_metrics,
    principal_axes,
)
from aniso.moments import Grams, GroupMoments, RowMoments
from aniso.ops import capture_rows_into
from aniso.ops._arrays import as_tensor, check_mask, check_rows
from aniso.ops._runs import check_groups
from aniso.ops.group_moments import add_rows
from aniso.state.file import load_state, save_state, take_over
from aniso.state.sources import Block, Sources

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor


class LayerState:
    """Sums over the rows of one layer, from which every exact metric follows.

    Float64 throughout: O(d) numbers, and two d × d Gram matrices when `gram`.

    Args:
        dim: d, the width of the rows.
        gram: Keep Σxxᵀ and Σx̂x̂ᵀ: variance of the cosine and all spectra need them.
        groups: Keep sums per group of rows (token, sentence, position), 16 d bytes for each
            group that comes: `group_cosine` needs them.
        device: Where the sums live; rows are brought there.

    Raises:
        InputError: dim is not positive.

    Example:
        >>> state = LayerState(4)
        >>> state.update(torch.eye(4))
        >>> state.compute().metrics["mean_cosine"]
        0.0
    """

    def __init__(
        self,
        dim: int,
        *,
        gram: bool = True,
        groups: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if dim < 1:
            raise InputError(f"dim is {dim}; it is the width of the rows, at least 1")
        self.moments = RowMoments.zeros(dim, device)
        try:
            self.grams = Grams.zeros(dim, device) if gram else None
        except RuntimeError as error:
            raise InputError(
                f"the two Gram matrices of {dim:,} columns need {16 * dim**2 / 1e9:,.0f} GB, "
                "which cannot be had; leave them out (gram=False, --no-gram)"
            ) from error
        self.groups = GroupMoments.zeros(dim, device) if groups else None
        self.sources = Sources()

    @property
    def dim(self) -> int:
        """d, the width of the rows."""
        return int(self.moments.sums.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the sums live."""
        device: torch.device = self.moments.sums.device
        return device

    def update(
        self, x: Any, mask: Any = None, groups: Any = None, *, block: Block | None = None
    ) -> None:
        """Adds rows.

        Args:
            x: Rows, [n, d] or [..., d], float64/float32/float16/bfloat16.
            mask: Rows to keep, bool, x's shape without its last axis.
            groups: Group of every row, int64 or int32, x's shape without its last axis; negative:
                in no group. Needed by a state with groups, and only by such.
            block: Where the rows come from; rows of a known block never count twice.

        Raises:
            InputError: another width or dtype, a mask of another shape, or rows counted already.

        Time O(n d²), or O(n d) without the Gram; on a CPU one row takes half as long as d/2. The
        sums do not depend on the order of updates beyond rounding.
        """
        rows, kept = checked_rows(x, mask, self.dim, self.device)
        sources = self.sources if block is None else self.sources.add(block)
        ids = self._ids(groups, rows)
        self.add(rows, kept)
        if ids is not None and self.groups is not None:
            self.groups = add_rows(self.groups, rows, kept, ids)
        self.sources = sources

    def add(self, x: Tensor, mask: Tensor | None) -> None:
        """Adds rows [..., d] that are known to fit, mask [...], but to no groups.

        A single op that `torch.compile` takes into its graph: unlike `update` it checks nothing.
        """
        grams = () if self.grams is None else self.grams.tensors()
        capture_rows_into(x.detach(), mask, *self.moments.tensors(), *grams)

    def _ids(self, groups: Any, rows: Tensor) -> Tensor | None:
        if (groups is None) != (self.groups is None):
            what = "keeps groups, but none are given" if groups is None else "keeps no groups"
            raise InputError(f"this state {what}; build it with groups={groups is not None}")
        if groups is None:
            return None
        ids = as_tensor(groups, "groups")
        return check_groups(ids.reshape(-1), rows)

    def merge(self, other: LayerState) -> LayerState:
        """The state of both row sets; neither operand changes.

        Raises:
            InputError: other width, only one has a Gram, or both hold the same source rows.
        """
        if not isinstance(other, LayerState) or other is self:
            what = "itself" if other is self else f"a {type(other).__name__}"
            raise InputError(f"cannot merge a state with {what}; pass another LayerState")
        if _shape(other) != _shape(self):
            raise InputError(
                f"cannot merge {_shape(self)} with {_shape(other)}; both must have the same"
            )
        merged = LayerState(self.dim, gram=False, device=self.device)
        merged.sources = self.sources.merge(other.sources)
        merged.moments = self.moments.merge(other.moments.map(lambda t: t.to(self.device)))
        if self.grams is not None and other.grams is not None:
            theirs = other.grams.map(lambda t: t.to(self.device))
            counts = (other.moments.rows, other.moments.directions)
            # The pilot of a state without rows is none.
            pilot = self.grams.pilot if self.moments.rows else theirs.pilot
            merged.grams = replace(self.grams, pilot=pilot).merge(theirs.about(pilot, counts))
        if self.groups is not None and other.groups is not None:
            merged.groups = self.groups.merge(other.groups)
        return merged

    def __add__(self, other: LayerState) -> LayerState:
        """Same as `merge`."""
        return self.merge(other)

    def reset(self) -> None:
        """Forgets all rows."""
        gram, groups = self.grams is not None, self.groups is not None
        fresh = LayerState(self.dim, gram=gram, groups=groups, device=self.device)
        self.load_state_dict(fresh.state_dict())
        self.sources = Sources()

    def compute(self) -> LayerMetrics:
        """All metrics of the rows seen so far. Time O(d³)."""
        return layer_metrics(self.moments, self.grams)

    def group_cosine(self) -> GroupCosine:
        """Cosines within and between the groups seen so far, as the function `group_cosine`.

        Raises:
            InputError: a state without groups.
        """
        if self.groups is None:
            raise InputError("this state keeps no groups; build it with groups=True")
        return cosines_of_groups(self.groups)

    def principal_axes(self, k: int, *, center: bool = False) -> PrincipalAxes:
        """The k leading singular values and right vectors of all rows seen; exact, no rows kept.

        Left vectors come from a second pass: `PrincipalAxes.left`.

        Args:
            k: How many.
            center: Subtract the mean row: principal components.

        Raises:
            InputError: a state without Gram or rows, or k not in 0..d.

        Time O(d³).
        """
        if self.grams is None:
            raise InputError("this state keeps no Gram, which axes need; build it with gram=True")
        return principal_axes(self.grams, self.moments.rows, k, center=center)

    def state_dict(self) -> dict[str, Tensor]:
        """The accumulators by name; they share memory with the state."""
        tensors = dict(vars(self.moments))
        if self.grams is not None:
            tensors |= {f"gram_{name}": tensor for name, tensor in vars(self.grams).items()}
        if self.groups is not None:
            tensors |= {f"group_{name}": tensor for name, tensor in vars(self.groups).items()}
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Takes over accumulators as `state_dict` gives them.

        Raises:
            InputError: names or shapes that do not belong to this state.
        """
        if self.groups is not None and "group_ids" in tensors:
            wanted = len(tensors["group_ids"])
            self.groups = GroupMoments.zeros(self.dim, self.device, wanted)
        take_over(self.state_dict(), tensors, _shape(self))

    def save(self, path: str | Path, *, layer: str | None = None) -> None:
        """Writes the state to a safetensors file, atomically, with schema and sources."""
        save_state(path, self.state_dict(), self.sources, layer)

    @classmethod
    def load(cls, path: str | Path) -> LayerState:
        """Reads a state that `save` wrote.

        Raises:
            InputError: no such file, not a state, damaged, or of a newer schema.
        """
        tensors, sources = load_state(path)
        gram, groups = "gram_raw" in tensors, "group_ids" in tensors
        state = cls(tensors["sums"].shape[1], gram=gram, groups=groups)
        state.load_state_dict(tensors)
        state.sources = sources
        return state

    def __repr__(self) -> str:
        return f"<LayerState {_shape(self)}, {self.moments.rows} rows>"


def checked_rows(x: Any, mask: Any, dim: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Rows [n, d] and mask [n] on a device.

    Raises:
        InputError: as `LayerState.update`.
    """
    rows = as_tensor(x)
    keep = None if mask is None else as_tensor(mask, "mask")
    if keep is not None and keep.shape != rows.shape[:-1]:
        raise InputError(
            f"mask has shape {list(keep.shape)}, x {list(rows.shape)}; a mask has x's shape "
            "without its last axis"
        )
    rows = rows.reshape(-1, rows.shape[-1]) if rows.ndim > 2 else rows
    check_rows(rows)
    if rows.shape[1] != dim:
        raise InputError(f"rows have {rows.shape[1]} columns, this state has dim {dim}")
    rows = rows.to(device)
    return rows, None if keep is None else check_mask(keep.reshape(-1), rows)


def _shape(state: LayerState) -> str:
    kept = [name for name, part in (("Gram", state.grams), ("groups", state.groups)) if part]
    return f"dim {state.dim} {'with ' + ' and '.join(kept) if kept else 'without Gram'}"
