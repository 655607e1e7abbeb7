"""States of consecutive leaves of rows, merged in one fixed tree whoever made them."""

from __future__ import annotations

import json
from functools import reduce
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from aniso._files import atomic_path
from aniso.errors import InputError
from aniso.state.layer_state import LayerState
from aniso.state.sources import Sources

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

_KIND = "aniso.StateTree"
_NODES_KEY = "nodes"
Place = tuple[int, int]


class StateTree:
    """Nodes of a binary tree over leaves 0, 1, 2 …; node (h, i) holds 2ʰ leaves from i 2ʰ on.

    Two finished siblings merge into their parent, the left one first. Which sums are added to
    which therefore depends on the number of leaves alone: trees that hold different leaves, made
    by any number of processes, join to the same bits.

    Attributes:
        nodes: The states by place: finished subtrees, and leaves still growing.
    """

    def __init__(self, nodes: dict[Place, LayerState] | None = None) -> None:
        self.nodes = {} if nodes is None else nodes

    def finish(self, place: Place, state: LayerState) -> None:
        """Takes a finished node and merges it upwards as far as siblings are there."""
        held = self.nodes.pop(place, None)
        if held is not None and held is not state:  # of leaves that were cut otherwise
            state = held.merge(state)
        height, index = place
        sibling = self.nodes.pop((height, index ^ 1), None)
        if sibling is None:
            self.nodes[place] = state
            return
        left, right = (sibling, state) if index % 2 else (state, sibling)
        self.finish((height + 1, index // 2), left.merge(right))

    def total(self) -> LayerState:
        """The state of all rows, the nodes merged from left to right."""
        places = sorted(self.nodes, key=lambda place: place[1] << place[0])
        return reduce(LayerState.merge, (self.nodes[place] for place in places))

    @property
    def sources(self) -> Sources:
        """Which rows are in."""
        return reduce(Sources.merge, (s.sources for s in self.nodes.values()), Sources())

    @property
    def rows_seen(self) -> int:
        """Rows that came in, whether they count or not."""
        return sum(int(s.moments.counts[[0, 2, 3]].sum()) for s in self.nodes.values())

    def facts(self) -> list[tuple[Place, str]]:
        """Places and sources of the nodes, in the order of `tensors`."""
        return [(place, self.nodes[place].sources.to_json()) for place in sorted(self.nodes)]

    def tensors(self) -> list[dict[str, Tensor]]:
        """The accumulators of every node."""
        return [self.nodes[place].state_dict() for place in sorted(self.nodes)]

    def save(self, path: Path) -> None:
        """Writes all nodes and their sources to one file, atomically."""
        tensors = {
            f"{i}.{name}": tensor
            for i, node in enumerate(self.tensors())
            for name, tensor in node.items()
        }
        metadata = {"kind": _KIND, _NODES_KEY: json.dumps(self.facts())}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata)

    @classmethod
    def load(cls, path: Path) -> StateTree:
        """Reads what `save` wrote.

        Raises:
            InputError: damaged, or no tree of states.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("kind") != _KIND:
                    raise InputError(f"{path} is no unfinished run of aniso; remove it")
                facts = json.loads(metadata[_NODES_KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); --no-resume starts over") from error
        return cls(dict(_node(i, fact, tensors) for i, fact in enumerate(facts)))


def _node(i: int, fact: Any, tensors: dict[str, Tensor]) -> tuple[Place, LayerState]:
    prefix = f"{i}."
    own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    (height, index), sources = fact
    return (height, index), state_of(own, sources)


def state_of(tensors: dict[str, Tensor], sources: str) -> LayerState:
    """The state whose accumulators and sources these are."""
    state = LayerState(tensors["sums"].shape[1], gram="gram_raw" in tensors)
    state.load_state_dict(tensors)
    state.sources = Sources.from_json(sources)
    return state
