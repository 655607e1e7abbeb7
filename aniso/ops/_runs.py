"""Rows in the order of their groups: the walk that group ops take over x, without moving a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from aniso.errors import InputError
from aniso.ops._arrays import as_tensor

if TYPE_CHECKING:
    from torch import Tensor

_ID_DTYPES = (torch.int64, torch.int32)


@dataclass(frozen=True)
class Runs:
    """Run s is the rows order[begin[s]], …, order[end[s] − 1]; all tensors int64.

    Attributes:
        order: Row numbers, of the rows that are in a group, group by group.
        begin: Where each run begins.
        end: Where it ends.
        slot: The group it goes to; no two runs of a walk have the same.
    """

    order: Tensor
    begin: Tensor
    end: Tensor
    slot: Tensor

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four tensors, in the order of the kernels' argument."""
        return self.order, self.begin, self.end, self.slot

    def selected(self, keep: Tensor) -> Runs:
        """The runs that `keep`, bool or numbers of runs, names."""
        return Runs(self.order, self.begin[keep], self.end[keep], self.slot[keep])

    def divided(self, longest: int) -> DividedRuns | None:
        """The same with no run longer than `longest`; None when there is none, the usual case."""
        lengths = self.end - self.begin
        long = lengths > longest
        if not bool(long.any()):
            return None
        counts = (lengths[long] + longest - 1) // longest
        owner = torch.repeat_interleave(counts)
        slot = torch.arange(len(owner), device=owner.device)
        of_long = self.selected(long)
        begin = of_long.begin[owner] + longest * (slot - (counts.cumsum(0) - counts)[owner])
        end = torch.minimum(begin + longest, of_long.end[owner])
        pieces = Runs(self.order, begin, end, slot)
        return DividedRuns(self.selected(~long), pieces, counts, of_long.slot)


@dataclass(frozen=True)
class DividedRuns:
    """Runs that one thread sums in one go.

    Attributes:
        short: Those that were short enough.
        pieces: Pieces of the long ones, one after the other; piece p has slot p.
        counts: Pieces of each long run.
        slots: The group each long run goes to.
    """

    short: Runs
    pieces: Runs
    counts: Tensor
    slots: Tensor

    def folded(self, sums: Tensor) -> Tensor:
        """Sums of the pieces [pieces, …] as sums of the long runs, in a fixed order."""
        total: Tensor = torch.segment_reduce(sums.double(), "sum", lengths=self.counts, axis=0)
        return total.to(sums.dtype)


def runs_of(ids: Tensor, mask: Tensor | None) -> Runs:
    """The runs of the ids ≥ 0, by id; within a run the rows keep their order.

    Time O(n) where ids are in order, O(n log n) otherwise; memory O(n).
    """
    member = ids >= 0 if mask is None else (ids >= 0) & mask
    order = member.nonzero().squeeze(1)
    ids = ids[order]
    if bool((ids[1:] < ids[:-1]).any()):
        ids, by_id = torch.sort(ids, stable=True)
        order = order[by_id]
    slot, lengths = torch.unique_consecutive(ids, return_counts=True)
    end = lengths.cumsum(0)
    return Runs(order, end - lengths, end, slot)


def check_groups(groups: Any, x: Tensor, name: str = "groups") -> Tensor:
    """The ids as an int64 tensor [n] on x's device.

    Raises:
        InputError: another dtype or length.
    """
    if isinstance(groups, np.ndarray) and groups.dtype.kind not in "fbiu":
        raise InputError(f"{name} has dtype {groups.dtype}; number the groups with int64")
    tensor = as_tensor(groups, name)
    if tensor.dtype not in _ID_DTYPES or tensor.shape != x.shape[:1]:
        raise InputError(
            f"{name} is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}; "
            f"it must be int64 or int32 [{x.shape[0]}], one group per row"
        )
    return tensor.to(x.device, torch.int64)
