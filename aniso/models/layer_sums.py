"""What the rows of one captured layer on one device go to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch

from aniso.state import GatheredState, LayerState, SketchState

if TYPE_CHECKING:
    from torch import Tensor

    from aniso.metrics import LayerMetrics

_State = TypeVar("_State", LayerState, SketchState)


@dataclass(frozen=True)
class StateKind:
    """Which sums are kept of every layer.

    Attributes:
        gram: Second moments.
        sketch: Random directions of a sketch of them, in place of `gram`; 0 for none.
        groups: Sums per group.
        excludes: Whether token ids are left out.
        max_norm_multiple: Rows longer than this multiple of the median are left out; None: none.
    """

    gram: bool = True
    sketch: int = 0
    groups: bool = False
    excludes: bool = False
    max_norm_multiple: float | None = None

    @property
    def leaves_out(self) -> bool:
        """Whether a rule leaves rows out, which then have sums of their own."""
        return self.excludes or self.max_norm_multiple is not None

    @property
    def static(self) -> bool:
        """Whether the sums are tensors of a fixed size, which compiled code adds to."""
        return not (self.groups or self.sketch)


class LayerSums:
    """The states of one layer on one device.

    Attributes:
        sketch: Second moments by a sketch.
        left_out_rows: [2] int64: rows left out by token id; of the others, by their norm.
        calls: [1] int64: how often the layer ran.
    """

    def __init__(self, dim: int, kind: StateKind, device: torch.device) -> None:
        self._multiple = kind.max_norm_multiple
        # Made as ordinary tensors even where inference mode is on: they outlive it.
        with torch.inference_mode(False):
            state = LayerState(dim, gram=kind.gram, groups=kind.groups, device=device)
            aside = LayerState(dim, gram=kind.gram, device=device) if kind.leaves_out else None
            self._counted = GatheredState(state)
            self._aside = None if aside is None else GatheredState(aside)
            self.sketch = SketchState(dim, kind.sketch, device=device) if kind.sketch else None
            self.left_out_rows = torch.zeros(2, dtype=torch.int64, device=device)
            self.calls = torch.zeros(1, dtype=torch.int64, device=device)

    @property
    def state(self) -> LayerState:
        """Sums of the rows that count."""
        return self._counted.state

    @property
    def left_out(self) -> LayerState | None:
        """Those of rows that a rule leaves out: the sums of all rows are both together."""
        return None if self._aside is None else self._aside.state

    @property
    def dim(self) -> int:
        """The width of the rows."""
        return self._counted.dim

    @property
    def device(self) -> torch.device:
        """Where the sums live."""
        return self._counted.device

    @property
    def ran(self) -> bool:
        """Whether the layer ran at all."""
        return bool(self.calls)

    def fits(self, hidden: Tensor) -> bool:
        """Whether these sums take such rows."""
        return hidden.shape[-1] == self.dim and hidden.device == self.device

    def add(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        excluded: Tensor | None,
        groups: Tensor | None = None,
    ) -> Tensor | None:
        """Adds rows [..., d]; returns which of them count, None for all."""
        self.calls.add_(1)
        counted = mask
        if self._aside is not None:
            counted, aside = self._divided(hidden, mask, excluded)
            self._aside.add(hidden, aside)
        if groups is not None:
            self.state.update(hidden, counted, groups)
        else:
            self._counted.add(hidden, counted)
        if self.sketch is not None:
            self.sketch.update(hidden, counted)
        return counted

    def _divided(
        self, hidden: Tensor, mask: Tensor | None, excluded: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Rows that count, and rows that are left out."""
        kept = hidden.new_ones(hidden.shape[:-1], dtype=torch.bool) if mask is None else mask
        by_id = torch.zeros_like(kept) if excluded is None else kept & excluded
        counted = kept & ~by_id
        by_norm = torch.zeros_like(kept)
        if self._multiple is not None:
            by_norm = far_rows(hidden, counted, self._multiple)
        self.left_out_rows.add_(torch.stack([by_id.sum(), by_norm.sum()]))
        return counted & ~by_norm, by_id | by_norm

    def merge(self, other: LayerSums) -> LayerSums:
        """The sums of both, on the device of these; neither changes."""
        merged = object.__new__(LayerSums)
        merged._multiple = self._multiple
        merged.calls = self.calls + other.calls.to(self.calls.device)
        merged._counted = GatheredState(self.state.merge(other.state))
        aside = _both(self.left_out, other.left_out)
        merged._aside = None if aside is None else GatheredState(aside)
        merged.sketch = _both(self.sketch, other.sketch)
        merged.left_out_rows = self.left_out_rows + other.left_out_rows.to(self.device)
        return merged

    def compute(self) -> LayerMetrics:
        """Metrics of the rows that count; where a rule left rows out, those of all rows beside."""
        state, left_out = self.state, self.left_out
        metrics = state.compute()
        if left_out is None:
            return metrics
        by_id, by_norm = self.left_out_rows.tolist()
        counts = dict(metrics.counts)
        counts["masked_rows"] -= by_id + by_norm
        counts |= {"excluded_rows": by_id, "outlier_rows": by_norm}
        together = LayerState.merge(_without_groups(state), left_out).compute()
        return replace(metrics, counts=counts, metrics_of_all=together.metrics)


def far_rows(hidden: Tensor, counted: Tensor, multiple: float) -> Tensor:
    """Rows whose norm is finite and over `multiple` times the median norm of the counted rows."""
    norms = torch.linalg.vector_norm(hidden, dim=-1, dtype=_wide(hidden))
    usable = counted & torch.isfinite(norms)
    if not norms.numel():
        return usable
    median = torch.where(usable, norms, torch.nan).nanmedian()
    far: Tensor = usable & (norms > multiple * median)
    return far


def _wide(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def _both(mine: _State | None, theirs: _State | None) -> _State | None:
    return None if mine is None or theirs is None else mine.merge(theirs)


def _without_groups(state: LayerState) -> LayerState:
    """The same sums but for those of groups; they share memory."""
    bare = LayerState(state.dim, gram=False, device=state.device)
    bare.moments, bare.grams = state.moments, state.grams
    return bare
