"""The result of an analysis, and the files made of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aniso.report._distribution import distribution_entry
from aniso.report._extra import missing_extra, write_texts
from aniso.report._groups import groups_entry
from aniso.report._plain import plain

if TYPE_CHECKING:
    from rich.table import Table

    from aniso.metrics import CosineHistogram, GroupCosine, LayerMetrics

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """Metrics of every layer, with where they came from.

    Attributes:
        layers: Module path to metrics, in order of execution, the embedding layer first.
        provenance: What was analysed, by which versions, when. Values need not be JSON types.
        notes: Sentences the reader has to know before believing a number.
        distributions: The cosine of pairs of rows, for the layers whose rows could be drawn.
        groups: Cosines within and between groups of rows, for the layers that keep groups.
        facts: What `results.json` says of a layer besides: its site, its sketch.
    """

    layers: dict[str, LayerMetrics]
    provenance: dict[str, Any]
    notes: tuple[str, ...] = ()
    distributions: dict[str, CosineHistogram] = field(default_factory=dict)
    groups: dict[str, GroupCosine] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def results(self) -> dict[str, Any]:
        """Return what `results.json` holds: JSON types only, an undefined number is None."""
        return {
            "schema": SCHEMA,
            "layers": [self._layer_entry(name) for name in self.layers],
            "provenance": plain(self.provenance),
        }

    def to_json(self) -> str:
        """Return `results()` as strict JSON (no NaN), every number in full precision."""
        return json.dumps(self.results(), allow_nan=False, indent=1) + "\n"

    def to_html(self) -> str:
        """Return one self-contained page: tables, plots as inline SVG, formulas, citations.

        Raises:
            ImportError: matplotlib or jinja2 is not installed (`pip install "aniso[report]"`).
        """
        missing = self.missing_extra()
        if missing is not None:
            raise ImportError(missing)
        from aniso.report._html import render_html

        return render_html(self)

    def to_markdown(self) -> str:
        """Return a section for a model card: finding, key figures, formulas, left-out rows."""
        from aniso.report._text import to_markdown

        return to_markdown(self)

    def to_csv(self) -> str:
        """Return a CSV table: a line per layer, every number in full precision."""
        from aniso.report._text import to_csv

        return to_csv(self)

    def summary(self) -> str:
        """Return which layers are most alike, by how much, and the dimensions that make it so."""
        from aniso.report._summary import summary

        return summary(self.layers)

    def table(self, width: int = 80) -> Table:
        """Return a rich table of the main metrics that fits `width` columns."""
        from aniso.report._table import metrics_table

        return metrics_table(self.layers, width)

    def trends(self, width: int = 80) -> Table | None:
        """Return a rich table with the course of four metrics over three layers or more."""
        from aniso.report._table import trends

        return trends(self.layers, width)

    def save(self, folder: str | Path) -> list[Path]:
        """Write `results.json`, and `report.html` where the report extra is installed.

        Each file appears whole or not at all. `missing_extra()` says why there is no HTML.

        Args:
            folder: Where to write; made if it is not there.

        Returns:
            The paths written.
        """
        contents = {"results.json": self.to_json()}
        if self.missing_extra() is None:
            contents["report.html"] = self.to_html()
        return write_texts(Path(folder), contents)

    def _layer_entry(self, name: str) -> dict[str, Any]:
        layer = self.layers[name]
        entry = {
            "name": name,
            "dim": int(layer.dim),
            "counts": plain(layer.counts),
            "metrics": plain(layer.metrics),
        }
        if layer.resolution_floor is not None:
            entry["resolution_floor"] = plain(layer.resolution_floor)
        if name in self.distributions:
            entry["cosine_distribution"] = distribution_entry(self.distributions[name])
        if name in self.groups:
            entry["groups"] = groups_entry(self.groups[name])
        if layer.metrics_of_all is not None:
            entry["metrics_of_all"] = plain(layer.metrics_of_all)
        return entry | plain(self.facts.get(name, {}))

    @staticmethod
    def missing_extra() -> str | None:
        """Return what to install for the HTML report, or None if nothing is missing."""
        return missing_extra()

    def __str__(self) -> str:
        """Return the table as plain text, 80 columns wide."""
        from aniso.report._table import plain_text

        return plain_text(self.table())
