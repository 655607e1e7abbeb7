"""Several processes on one job: torchrun starts them, each takes its share, one gathers."""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from aniso.errors import InputError
from aniso.state.state_tree import StateTree, state_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_T = TypeVar("_T")
# Shares end at different times; a process that dies ends its connections at once.
_PATIENCE = timedelta(days=7)


class Ranks:
    """This process among those of the job; alone without torchrun.

    Attributes:
        rank: Which one, from 0.
        world: How many.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    def share(self, items: Sequence[_T]) -> Sequence[_T]:
        """This process's items: consecutive ones, as many as the others get, give or take one."""
        begin = len(items) * self.rank // self.world
        return items[begin : len(items) * (self.rank + 1) // self.world]

    def agree(self, error: InputError | None = None) -> None:
        """Waits for all processes.

        Raises:
            InputError: the first that any of them brought.
        """
        errors: list[str | None] = [None if error is None else str(error)] * self.world
        if self.world > 1:
            dist.all_gather_object(errors, errors[0])
        if error is not None:
            raise error
        for sentence in errors:
            if sentence is not None:
                raise InputError(sentence)

    def gather(self, tree: StateTree) -> StateTree | None:
        """All processes' nodes joined, on the first process; None on the others."""
        if self.world == 1:
            return tree
        facts: list[Any] = [None] * self.world
        dist.all_gather_object(
            facts, [(f, _shapes(t)) for f, t in zip(tree.facts(), tree.tensors(), strict=True)]
        )
        if self.rank:
            for node in tree.tensors():
                for name in sorted(node):
                    dist.send(node[name].contiguous(), 0)
            return None
        for sender in range(1, self.world):
            for (place, sources), shapes in facts[sender]:
                node = {name: _receive(shapes[name], sender) for name in sorted(shapes)}
                tree.finish(tuple(place), state_of(node, sources))
        return tree

    def broadcast(self, value: _T | None) -> _T:
        """What the first process has, on all of them."""
        held: list[Any] = [value]
        if self.world > 1:
            dist.broadcast_object_list(held)
        found: _T = held[0]
        return found


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Joins the processes that torchrun started, over gloo; yields a lone one without torchrun."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "MASTER_ADDR" not in os.environ:
        yield Ranks()
        return
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _receive(kind: tuple[tuple[int, ...], torch.dtype], sender: int) -> torch.Tensor:
    tensor = torch.empty(kind[0], dtype=kind[1])
    dist.recv(tensor, sender)
    return tensor
