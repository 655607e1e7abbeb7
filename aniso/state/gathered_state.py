"""A LayerState that few rows at a time go to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from aniso.errors import InputError
from aniso.ops._arrays import check_rows
from aniso.state.layer_state import LayerState, checked_rows

if TYPE_CHECKING:
    from torch import Tensor

    from aniso.state.sources import Block


class _Few(NamedTuple):
    rows: Tensor
    mask: Tensor | None
    block: Block | None


class GatheredState:
    """Rows wait, on a CPU, until they are min(d/2, 1024), and then go to the state together.

    Adding to two sums of d × d takes half as long for one row as for d/2. Which rows go together
    depends on the calls since the last ones went. Compiled code adds at once.

    Args:
        state: Where the rows go; other rows may be added to `self.state` alone.
    """

    def __init__(self, state: LayerState) -> None:
        self.dim, self.device = state.dim, state.device
        self._state = state
        self._limit = rows_that_wait(state.dim, state.device) if state.grams is not None else 0
        self._waiting: list[_Few] = []
        self._rows = 0
        # Rows whose addition began and has not ended.
        self._unfinished = 0

    @property
    def state(self) -> LayerState:
        """The state of all rows.

        Raises:
            InputError: adding them was broken off, at this time or an earlier one.
        """
        self._settle()
        if self._unfinished:
            raise InputError(
                f"adding {self._unfinished:,} rows was broken off, so that some of them may be "
                "missing; start again"
            )
        return self._state

    def update(self, x: Any, mask: Any = None, *, block: Block | None = None) -> None:
        """Adds rows as `LayerState.update`, which knows the block once its rows do not wait."""
        rows, kept = checked_rows(x, mask, self.dim, self.device)
        self.add(rows, kept, block)

    def add(self, hidden: Tensor, mask: Tensor | None, block: Block | None = None) -> None:
        """Adds rows [..., d] that are known to fit, mask [...]."""
        if torch.compiler.is_compiling():
            self._state.add(hidden, mask)
            return
        count = hidden.shape[:-1].numel()
        other = bool(self._waiting) and self._waiting[0].rows.dtype != hidden.dtype
        if other or self._rows + count > self._limit:
            self._settle()
        if count > self._limit:
            self._give(hidden, mask, [block])
        elif count:
            # Copies: what holds the rows may be written over.
            kept = None if mask is None else mask.flatten().clone()
            rows = check_rows(hidden.detach().flatten(0, -2)).clone()
            self._waiting.append(_Few(rows, kept, block))
            self._rows += count

    def _settle(self) -> None:
        if not self._waiting:
            return
        rows = torch.cat([few.rows for few in self._waiting])
        mask = None
        if any(few.mask is not None for few in self._waiting):
            mask = torch.cat([_kept(few) for few in self._waiting])
        blocks = [few.block for few in self._waiting]
        self._waiting, self._rows = [], 0
        self._give(rows, mask, blocks)

    def _give(self, rows: Tensor, mask: Tensor | None, blocks: list[Block | None]) -> None:
        count = rows.shape[:-1].numel()
        self._unfinished += count
        sources = self._state.sources
        for block in blocks:
            sources = sources if block is None else sources.add(block)
        self._state.add(rows, mask)
        self._state.sources = sources
        self._unfinished -= count


def rows_that_wait(dim: int, device: torch.device | str) -> int:
    """How many rows of a layer wait at most for their second moments."""
    return min(dim // 2, 1024) if torch.device(device).type == "cpu" else 0


def _kept(few: _Few) -> Tensor:
    if few.mask is None:
        return few.rows.new_ones(len(few.rows), dtype=torch.bool)
    return few.mask
