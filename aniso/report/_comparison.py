"""Two sources side by side: the result, its terminal table and its JSON form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aniso.report._labels import short_names
from aniso.report._plain import EMPTY, column, count, plain
from aniso.report._table import COLUMNS, SHORTEST_NAME

if TYPE_CHECKING:
    from rich.table import Table

    from aniso.metrics import Comparison

SCHEMA = 1
_GAP = 2


@dataclass(frozen=True)
class ComparisonReport:
    """What differs between two sources, layer by layer.

    Attributes:
        a: The first source, as it was named.
        b: The second.
        layers: Layer to comparison, in order of execution.
        notes: Sentences the reader has to know before believing a number.
    """

    a: str
    b: str
    layers: dict[str, Comparison]
    notes: tuple[str, ...] = ()

    def results(self) -> dict[str, Any]:
        """Return everything in JSON types; an undefined number is None."""
        return {
            "schema": SCHEMA,
            "a": self.a,
            "b": self.b,
            "layers": [_entry(name, layer) for name, layer in self.layers.items()],
            "notes": list(self.notes),
        }

    def table(self, width: int = 80) -> Table:
        """Return a rich table: how alike the layers are, and Δ = b − a of the main metrics.

        The least telling metrics give way where `width` columns do not suffice.
        """
        from rich import box
        from rich.table import Table
        from rich.text import Text

        columns = _columns(list(self.layers.values()), width)
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        table.add_column("layer", no_wrap=True)
        for heading, _ in columns:
            table.add_column(heading, justify="right", no_wrap=True)
        room = width - sum(_outer(*cells) for cells in columns)
        for row, name in enumerate(short_names(list(self.layers), max(room, SHORTEST_NAME))):
            table.add_row(Text(name), *(values[row] for _, values in columns))
        return table


def _entry(name: str, layer: Comparison) -> dict[str, Any]:
    sides = {"a": layer.metrics_a, "b": layer.metrics_b}
    return {
        "name": name,
        "rows": layer.rows,
        "rsa_pearson": plain(layer.rsa_pearson),
        "debiased_cka": plain(layer.debiased_cka),
        "delta": plain(layer.delta),
        **{
            side: {"dim": m.dim, "counts": plain(m.counts), "metrics": plain(m.metrics)}
            for side, m in sides.items()
        },
    }


def _columns(layers: list[Comparison], width: int) -> list[tuple[str, list[str]]]:
    """Return headings and cells that fit beside a layer's name."""
    cells = {}
    if any(layer.rows is not None for layer in layers):
        rows = [EMPTY if layer.rows is None else count(layer.rows, narrow=True) for layer in layers]
        cells["rows"] = ("rows", rows)
        cells["rsa"] = ("RSA-\nPearson", _column([layer.rsa_pearson for layer in layers]))
        cells["cka"] = ("deb.\nCKA", _column([layer.debiased_cka for layer in layers]))
    for key, _, short, _ in COLUMNS:
        values = _column([layer.delta.get(key) for layer in layers])
        signed = [f"+{value}" if value[0].isdigit() else value for value in values]
        cells[key] = (f"Δ {short}", signed)
    for key, _, _, rank in sorted(COLUMNS, key=lambda entry: -entry[3]):
        if rank and sum(_outer(*cell) for cell in cells.values()) + SHORTEST_NAME > width:
            del cells[key]
    return list(cells.values())


def _column(values: list[float | None]) -> list[str]:
    return column([math.nan if value is None else value for value in values], most=4)


def _outer(heading: str, values: list[str]) -> int:
    """Return the characters that a column takes, its gap included."""
    return max(len(line) for line in [*heading.split("\n"), *values]) + _GAP
