"""Cosines within and between groups of rows: table, JSON."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from aniso.report._plain import column, count, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aniso.metrics import GroupCosine

GROUP_KEYS = ("within", "within_mean", "between")
GROUP_COUNTS = ("groups", "rows", "zero_rows")


def groups_entry(found: GroupCosine) -> dict[str, Any]:
    """Return the numbers over all groups in JSON types."""
    return {key: plain(getattr(found, key)) for key in (*GROUP_KEYS, *GROUP_COUNTS)}


def group_rows(
    found: Mapping[str, GroupCosine], layers: Sequence[str], mean: Mapping[str, float]
) -> list[tuple[str, list[str]]]:
    """Return a line per layer: groups, rows, cosines within and between, and of all pairs."""
    names = [name for name in layers if name in found]
    cells = [[count(getattr(found[name], key)) for name in names] for key in GROUP_COUNTS]
    cells += [column([getattr(found[name], key) for name in names]) for key in GROUP_KEYS]
    cells.append(column([mean.get(name, math.nan) for name in names]))
    return [(name, list(row)) for name, row in zip(names, zip(*cells, strict=True), strict=True)]
