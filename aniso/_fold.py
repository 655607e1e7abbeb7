"""Folding the blocks of a dump into states, kept on disk while it lasts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aniso._checkpoints import Checkpoints, blocks_done
from aniso.dumps import Waiting, read_blocks
from aniso.errors import InputError
from aniso.ops._arrays import first_nonfinite_row
from aniso.progress import Progress, Reading
from aniso.state import GatheredState, LayerState
from aniso.state.state_tree import StateTree

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aniso._interrupt import Interrupt
    from aniso.distributed import Ranks
    from aniso.dumps import DumpBlock, DumpLayer, StoredBlock

_CHECKPOINT_SECONDS = 120.0
# Blocks of a leaf of the fixed tree, and whole blocks that its rows would fill, at least: merging
# one costs little beside folding them.
_LEAF_BLOCKS, _LEAF_WHOLE_BLOCKS = 8, 2
# Where the rows of an earlier result stand: before all leaves, a sibling of none.
_EARLIER = (0, -1)


class NonfiniteRowError(InputError):
    """A row that a strict run must not count; no later run can go on from here."""


class Fold:
    """One process's part of an analysis.

    Args:
        out: The output folder, or None.
        ranks: The processes.
        gram: Keep second moments.
        strict: Raise at the first non-finite row.
        resume: Take over what an earlier run left.
    """

    def __init__(
        self,
        out: Path | None,
        ranks: Ranks,
        *,
        gram: bool,
        strict: bool,
        resume: bool,
    ) -> None:
        share = f"{ranks.rank}-of-{ranks.world}" if ranks.world > 1 else ""
        self.checkpoints = Checkpoints(out, share)
        self._out = out
        self._ranks, self._gram, self._strict, self._resume = ranks, gram, strict, resume

    @property
    def after_interrupt(self) -> str:
        """What to tell the user who pressed Ctrl-C."""
        if self._out is None or not self._resume:
            return "nothing was saved; name an output folder to go on from where a run stopped"
        return f"the rows done are saved in {self._out}; run the same command again to go on"

    def begin(self) -> None:
        """Looks at what an earlier run left.

        Raises:
            InputError: a run of other shares, which this one cannot go on with.
        """
        if self._resume:
            self.checkpoints.refuse_other_shares()

    def layer(
        self, name: str, parts: list[DumpLayer], shown: Progress, interrupt: Interrupt
    ) -> StateTree:
        """This process's nodes of the layer's tree, all of its share folded in."""
        blocks = [block for part in parts for block in part.stored_blocks()]
        finished = self._finished(name, blocks)
        if finished is not None:
            shown.skip(finished.moments.rows if self._ranks.rank == 0 else 0)
            return StateTree({(0, 0): finished} if self._ranks.rank == 0 else {})
        work = self._ranks.share(_leaves(blocks, _LEAF_WHOLE_BLOCKS * parts[0].block_rows))
        mine = [step for leaf in work for step in leaf]
        tree = self._resumed(name, blocks, [step.block for step in mine])
        done = blocks_done(tree, [step.block for step in mine])
        shown.skip(sum(step.block.rows for step in mine[:done]))
        try:
            self._fold(name, tree, mine[done:], parts[0].dim, (shown, interrupt))
        except NonfiniteRowError:
            self.checkpoints.discard()
            raise
        except InputError:
            self.checkpoints.save(name, tree)
            raise
        return tree

    def _fold(
        self,
        name: str,
        tree: StateTree,
        steps: Sequence[_Step],
        dim: int,
        watch: tuple[Progress, Interrupt],
    ) -> None:
        shown, interrupt = watch
        waiting, saved = Waiting(), time.monotonic()
        shards = {path: i for i, path in enumerate(dict.fromkeys(s.block.part.path for s in steps))}
        leaf: GatheredState | None = None
        for step, block in zip(
            steps, read_blocks([step.block for step in steps], waiting), strict=True
        ):
            if leaf is None:
                if step.place not in tree.nodes:
                    tree.nodes[step.place] = LayerState(dim, gram=self._gram)
                leaf = GatheredState(tree.nodes[step.place])
            self._add(leaf, block)
            if step.last:
                tree.finish(step.place, leaf.state)
                leaf = None
            reading = Reading(shards[block.path] + 1, len(shards), waiting.seconds)
            shown.advance(len(block.rows), block.rows.nbytes, reading)
            if interrupt.requested or time.monotonic() - saved > _CHECKPOINT_SECONDS:
                self.checkpoints.save(name, tree)
                saved = time.monotonic()
            interrupt.raise_if_requested()
        self.checkpoints.save(name, tree)

    def _add(self, leaf: GatheredState, block: DumpBlock) -> None:
        if self._strict and (row := first_nonfinite_row(block.rows)) is not None:
            raise NonfiniteRowError(
                f"{block.path} has a NaN or infinite value in row {block.block.start + row}; "
                "mend it, or leave out strict to skip and count such rows"
            )
        leaf.update(block.rows, block.mask, block=block.block)

    def _finished(self, name: str, blocks: list[StoredBlock]) -> LayerState | None:
        """An earlier result over exactly these rows."""
        if not self._resume:
            return None
        state = self.checkpoints.finished(name, blocks)
        if state is None or not self._fits(state):
            return None
        complete = blocks_done(StateTree({(0, 0): state}), blocks) == len(blocks)
        return state if complete else None

    def _resumed(self, name: str, blocks: list[StoredBlock], mine: list[StoredBlock]) -> StateTree:
        """The furthest tree of an earlier run over the first of these blocks."""
        if not self._resume:
            return StateTree()
        tree = self.checkpoints.load(name, mine)
        if tree is not None and all(map(self._fits, tree.nodes.values())):
            return tree
        earlier = self.checkpoints.finished(name, blocks)
        # Rows that were added to a dump go on where its result stopped.
        alone = self._ranks.world == 1
        return StateTree({_EARLIER: earlier} if earlier and alone and self._fits(earlier) else {})

    def _fits(self, state: LayerState) -> bool:
        clean = not (self._strict and state.moments.nonfinite_rows)
        return clean and (state.grams is not None) == self._gram


@dataclass(frozen=True)
class _Step:
    """A block, and the leaf it belongs to."""

    leaf: int
    block: StoredBlock
    last: bool

    @property
    def place(self) -> tuple[int, int]:
        return 0, self.leaf


def _leaves(blocks: list[StoredBlock], least_rows: int) -> list[list[_Step]]:
    """The blocks of each leaf, as many for any number of processes."""
    leaves: list[list[StoredBlock]] = [[]]
    rows = 0
    for block in blocks:
        if rows >= least_rows and len(leaves[-1]) >= _LEAF_BLOCKS:
            leaves.append([])
            rows = 0
        leaves[-1].append(block)
        rows += block.rows
    return [
        [_Step(i, block, last=block is leaf[-1]) for block in leaf] for i, leaf in enumerate(leaves)
    ]
