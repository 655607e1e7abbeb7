"""Two sources side by side: the result, its terminal table and its JSON form."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aniso.report._extra import missing_extra, write_texts
from aniso.report._plain import EMPTY, column, count, plain
from aniso.report._table import COLUMNS, SHORTEST_NAME, layer_table, outer

if TYPE_CHECKING:
    from rich.table import Table

    from aniso.metrics import Comparison

SCHEMA = 1


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

    def to_html(self) -> str:
        """Return one self-contained page: before and after, layer by layer.

        Raises:
            ImportError: matplotlib or jinja2 is not installed (`pip install "aniso[report]"`).
        """
        missing = missing_extra()
        if missing is not None:
            raise ImportError(missing)
        from aniso.report._comparison_html import render_comparison

        return render_comparison(self)

    def save(self, folder: str | Path) -> list[Path]:
        """Write `comparison.json`, and `comparison.html` where the report extra is installed.

        Args:
            folder: Where to write; made if it is not there.

        Returns:
            The paths written.
        """
        contents = {"comparison.json": json.dumps(self.results(), allow_nan=False) + "\n"}
        if missing_extra() is None:
            contents["comparison.html"] = self.to_html()
        return write_texts(Path(folder), contents)

    def table(self, width: int = 80) -> Table:
        """Return a rich table: how alike the layers are, and Δ = b − a of the main metrics.

        The least telling metrics give way where `width` columns do not suffice.
        """
        columns = _columns(list(self.layers.values()), width)
        return layer_table(list(self.layers), columns, width)


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
        if rank and sum(outer(*cell) for cell in cells.values()) + SHORTEST_NAME > width:
            del cells[key]
    return list(cells.values())


def _column(values: list[float | None]) -> list[str]:
    return column([math.nan if value is None else value for value in values], most=4)
