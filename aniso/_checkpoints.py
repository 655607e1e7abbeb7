"""What an interrupted analysis leaves behind, and what a later one may take over."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING
from urllib.parse import quote

from safetensors import SafetensorError

from aniso.errors import InputError
from aniso.state import STATE_SUFFIX, LayerState
from aniso.state.sources import Sources
from aniso.state.state_tree import StateTree

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aniso.dumps import StoredBlock

_PARTIAL = ".aniso-partial"


class Checkpoints:
    """The unfinished states of one process in the output folder.

    States and the list of rows folded into them are one file, replaced in one step: a restart
    counts no row twice and loses none that was saved.

    Args:
        out: The output folder; None keeps nothing.
        share: Which share of the work this is, "2-of-4"; "" for all of it.
    """

    def __init__(self, out: Path | None, share: str) -> None:
        self._out, self._share = out, share

    def refuse_other_shares(self) -> None:
        """Raises InputError when a run that shared the work otherwise left states."""
        if self._out is None or not (self._out / _PARTIAL).is_dir():
            return
        world = self._share.partition("-of-")[2]
        for path in sorted((self._out / _PARTIAL).glob(f"*{STATE_SUFFIX}")):
            share = path.name.removesuffix(STATE_SUFFIX).rpartition("@")[2]
            theirs = share.partition("-of-")[2] if "@" in path.name else ""
            if theirs != world:
                raise InputError(
                    f"{self._out} holds an unfinished run of {_shares(theirs)}; go on with as "
                    "many and the same options, or start over with --no-resume"
                )

    def save(self, layer: str, tree: StateTree) -> None:
        """Replaces the layer's file.

        Raises:
            InputError: no room on the disk, or the folder is gone; the file before is untouched.
        """
        path = self._path(layer)
        if path is None or not tree.sources.ranges:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            tree.save(path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"the rows done cannot be saved in {self._out} ({error}); mend that and run the "
                "same command again, it goes on from the last save"
            ) from error

    def load(self, layer: str, blocks: Sequence[StoredBlock]) -> StateTree | None:
        """The layer's states, if they hold the first of these blocks and nothing else.

        Raises:
            InputError: a file has changed since some of its rows were counted.
        """
        path = self._path(layer)
        if path is None or not path.exists():
            return None
        tree = StateTree.load(path)
        self._refuse_changed(tree.sources, blocks)
        return tree if blocks_done(tree, blocks) else None

    def finished(self, layer: str, blocks: Sequence[StoredBlock]) -> LayerState | None:
        """The result of an earlier run that holds the first of these blocks and nothing else."""
        if self._out is None or not (path := self._out / state_name(layer)).exists():
            return None
        state = LayerState.load(path)
        return state if blocks_done(StateTree({(0, 0): state}), blocks) else None

    def discard(self) -> None:
        """Removes all unfinished states."""
        if self._out is not None:
            shutil.rmtree(self._out / _PARTIAL, ignore_errors=True)

    def _path(self, layer: str) -> Path | None:
        """Where the layer's unfinished states lie; None where nothing is kept."""
        if self._out is None:
            return None
        mark = f"@{self._share}" if self._share else ""
        name = state_name(layer).removesuffix(STATE_SUFFIX)
        return self._out / _PARTIAL / f"{name}{mark}{STATE_SUFFIX}"

    def _refuse_changed(self, sources: Sources, blocks: Sequence[StoredBlock]) -> None:
        """Rows of a file of the same name, but of other content."""
        known = {block.block.source: block.part.path for block in blocks}
        names = {source.rpartition("@")[0]: path for source, path in known.items()}
        for source in sources.ranges:
            path = names.get(source.rpartition("@")[0])
            if source not in known and path is not None:
                raise InputError(
                    f"{path} has changed since the unfinished run in {self._out} counted rows of "
                    "it; bring the old file back, or start over with --no-resume"
                )


def state_name(layer: str) -> str:
    """The file name of a layer's state."""
    return f"{quote(layer, safe=' ')}{STATE_SUFFIX}"


def blocks_done(tree: StateTree, blocks: Sequence[StoredBlock]) -> int:
    """How many of the blocks are in, when these are the first ones and all there is; else 0."""
    sources, rows = tree.sources, tree.rows_seen
    if sum(b - a for ranges in sources.ranges.values() for a, b in ranges) != rows:
        return 0
    count, seen = 0, 0
    while count < len(blocks) and seen < rows:
        seen += blocks[count].block.stop - blocks[count].block.start
        count += 1
    return count if sources_of(blocks[:count]).ranges == sources.ranges else 0


def sources_of(blocks: Sequence[StoredBlock]) -> Sources:
    """The rows of consecutive blocks."""
    ranges: dict[str, tuple[int, int]] = {}
    for block in (stored.block for stored in blocks):
        begin = ranges.get(block.source, (block.start, 0))[0]
        ranges[block.source] = begin, block.stop
    return Sources({source: (ends,) for source, ends in ranges.items()})


def _shares(world: str) -> str:
    return f"{world} ranks" if world else "one process"
