"""Which rows of which source are in a state: what makes resuming and merging safe."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from aniso.errors import InputError


@dataclass(frozen=True)
class Block:
    """Rows [start, stop) of the source whose fingerprint is `source`."""

    source: str
    start: int
    stop: int


@dataclass(frozen=True)
class Sources:
    """The row ranges folded into a state, per source: sorted, disjoint, adjacent ones joined."""

    ranges: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)

    def add(self, block: Block) -> Sources:
        """With one more block.

        Raises:
            InputError: some of its rows are in already.
        """
        return self.merge(Sources({block.source: ((block.start, block.stop),)}))

    def merge(self, other: Sources) -> Sources:
        """The ranges of both.

        Raises:
            InputError: both hold the same rows of a source.
        """
        merged = dict(self.ranges)
        for source, ranges in other.ranges.items():
            merged[source] = _join(source, merged.get(source, ()) + ranges)
        return Sources(merged)

    def rows_done(self, source: str) -> int:
        """Number of rows of the source, counted from its first, that are in without a gap."""
        ranges = self.ranges.get(source, ())
        return ranges[0][1] if ranges and ranges[0][0] == 0 else 0

    def to_json(self) -> str:
        """As JSON: {source: [[start, stop], …]}."""
        return json.dumps(self.ranges)

    @classmethod
    def from_json(cls, text: str) -> Sources:
        """The inverse of `to_json`."""
        loaded = json.loads(text)
        return cls({source: tuple((a, b) for a, b in ranges) for source, ranges in loaded.items()})


def _join(source: str, ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if joined and start < joined[-1][1]:
            raise InputError(
                f"rows {start} to {min(stop, joined[-1][1])} of source {source} would count twice; "
                "merge states of different rows only"
            )
        if joined and start == joined[-1][1]:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)
