"""The terminal table."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

from aniso.report._labels import short_names, total
from aniso.report._plain import column, count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from aniso.metrics import LayerMetrics

    Column = tuple[str, list[str]]

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
TRENDS = ("mean_cosine", "relative_drift", "effective_rank", "isoscore")
BARS = "▁▂▃▄▅▆▇█"


def metrics_table(layers: Mapping[str, LayerMetrics], width: int) -> Table:
    """Return a rich table of `layers` that is at most `width` columns wide."""
    from rich.text import Text

    columns = _columns(layers, width, width >= ROOMY)
    table = layer_table(list(layers), columns, width)
    footer = _footer(layers)
    table.caption = Text(footer) if footer else None
    return table


def layer_table(names: Sequence[str], columns: Sequence[Column], width: int) -> Table:
    """Return a rich table with a line per layer; the names get the room that columns leave."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

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
    room = width - sum(outer(heading, values) for heading, values in columns)
    for row, name in enumerate(short_names(names, max(room, SHORTEST_NAME))):
        table.add_row(Text(name), *(values[row] for _, values in columns))
    return table


def sparkline(values: Sequence[float], width: int) -> str:
    """Return a bar of eighths per value, from the least to the largest; a gap where undefined.

    More values than `width` are thinned to that many, evenly.
    """
    if len(values) > width:
        values = [values[i * (len(values) - 1) // (width - 1)] for i in range(width)]
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    steps = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(
        BARS[round((value - low) * steps)] if math.isfinite(value) else " " for value in values
    )


def trends(layers: Mapping[str, LayerMetrics], width: int) -> Table | None:
    """Return the course of the main metrics over the layers, one sparkline each, or None."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(no_wrap=True)
    for key in TRENDS:
        values = [layer.metrics.get(key, math.nan) for layer in layers.values()]
        if sum(map(math.isfinite, values)) < 3:
            continue
        ends = column([min(filter(math.isfinite, values)), max(filter(math.isfinite, values))], 4)
        table.add_row(key, sparkline(values, max(8, width - 38)), f"{ends[0]} … {ends[1]}")
    return table if table.row_count else None


def plain_text(table: Table, width: int = 80) -> str:
    """Return `table` as text without colours."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").splitlines())


def _columns(layers: Mapping[str, LayerMetrics], width: int, roomy: bool) -> list[Column]:
    """Return the headings and cells that fit, the least telling metrics left out first."""
    rows = [count(int(layer.counts.get("rows", 0)), narrow=not roomy) for layer in layers.values()]
    cells = {}
    for key, full, short, _ in COLUMNS:
        values = column([layer.metrics.get(key, math.nan) for layer in layers.values()], most=4)
        cells[key] = (full if roomy else short, values)
    name = min(max((len(name) for name in layers), default=5), SHORTEST_NAME)
    for key in sorted(cells, key=lambda key: -_rank(key)):
        taken = sum(outer(*cell) for cell in [("rows", rows), *cells.values()])
        if taken + name > width and _rank(key):
            del cells[key]
    return [("rows", rows), *cells.values()]


def _rank(key: str) -> int:
    return next(rank for name, _, _, rank in COLUMNS if name == key)


def _widest(values: list[str]) -> int:
    return max((len(value) for value in values), default=1)


def outer(heading: str, values: list[str]) -> int:
    """Return the characters that a column takes, its gap included."""
    return max(_widest(values), *(len(line) for line in heading.split("\n"))) + 2


def _footer(layers: Mapping[str, LayerMetrics]) -> str:
    words = {"nonfinite_rows": "not finite (skipped)", "zero_rows": "zero", "masked_rows": "masked"}
    words |= {"excluded_rows": "left out by token id", "outlier_rows": "left out by norm"}
    totals = {key: total(layers, key) for key in words}
    parts = [f"{number:,} {words[key]}" for key, number in totals.items() if number]
    return f"Rows over all layers: {', '.join(parts)}." if parts else ""
