"""The terminal table."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from aniso.report._labels import short_names, total
from aniso.report._plain import column, count

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from aniso.metrics import LayerMetrics

# Key, heading where there is room, heading for 80 columns, how soon it gives way (0: never).
COLUMNS = (
    ("mean_cosine", "mean_cosine", "mean\ncosine", 0),
    ("std_cosine", "std_cosine", "std\ncosine", 3),
    ("relative_drift", "relative_drift", "rel.\ndrift", 2),
    ("rankme", "rankme", "rankme", 4),
    ("effective_rank", "effective_rank", "eff.\nrank", 0),
    ("isoscore", "isoscore", "iso-\nscore", 5),
    ("explained_variance_1", "explained_variance_1", "EV₁", 1),
)
ROOMY = 118
SHORTEST_NAME = 15


def metrics_table(layers: Mapping[str, LayerMetrics], width: int) -> Table:
    """Return a rich table of `layers` that is at most `width` columns wide."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    roomy = width >= ROOMY
    columns = _columns(layers, width, roomy)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        caption_justify="left",
    )
    table.add_column("layer", no_wrap=True)
    for heading, values in columns:
        table.add_column(heading, justify="right", no_wrap=True, min_width=_widest(values))
    room = width - sum(_outer(heading, values) for heading, values in columns)
    names = short_names(list(layers), max(room, SHORTEST_NAME))
    for row, name in enumerate(names):
        table.add_row(Text(name), *(values[row] for _, values in columns))
    footer = _footer(layers)
    table.caption = Text(footer) if footer else None
    return table


def plain_text(table: Table, width: int = 80) -> str:
    """Return `table` as text without colours."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())


def _columns(
    layers: Mapping[str, LayerMetrics], width: int, roomy: bool
) -> list[tuple[str, list[str]]]:
    """Return the headings and cells that fit, the least telling metrics left out first."""
    rows = [count(int(layer.counts.get("rows", 0)), narrow=not roomy) for layer in layers.values()]
    cells = {}
    for key, full, short, _ in COLUMNS:
        values = column([layer.metrics.get(key, math.nan) for layer in layers.values()], most=4)
        cells[key] = (full if roomy else short, values)
    name = min(max((len(name) for name in layers), default=5), SHORTEST_NAME)
    for key in sorted(cells, key=lambda key: -_rank(key)):
        taken = sum(_outer(*cell) for cell in [("rows", rows), *cells.values()])
        if taken + name > width and _rank(key):
            del cells[key]
    return [("rows", rows), *cells.values()]


def _rank(key: str) -> int:
    return next(rank for name, _, _, rank in COLUMNS if name == key)


def _widest(values: list[str]) -> int:
    return max((len(value) for value in values), default=1)


def _outer(heading: str, values: list[str]) -> int:
    """Return the characters that a column takes, its gap included."""
    return max(_widest(values), *(len(line) for line in heading.split("\n"))) + 2


def _footer(layers: Mapping[str, LayerMetrics]) -> str:
    words = {"nonfinite_rows": "not finite (skipped)", "zero_rows": "zero", "masked_rows": "masked"}
    words |= {"excluded_rows": "left out by token id", "outlier_rows": "left out by norm"}
    totals = {key: total(layers, key) for key in words}
    parts = [f"{number:,} {words[key]}" for key, number in totals.items() if number]
    return f"Rows over all layers: {', '.join(parts)}." if parts else ""
