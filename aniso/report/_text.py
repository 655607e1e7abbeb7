"""A report as a section of a model card, and as a table for spreadsheets."""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING, Any

from aniso.report._html import KEY_FIGURES, counts_of
from aniso.report._labels import row_notes
from aniso.report._plain import column, count, describe
from aniso.report._summary import summary

if TYPE_CHECKING:
    from aniso.report._report import Report

_FACTS = ("model", "sources", "text", "aniso", "date")


def to_markdown(report: Report) -> str:
    """Return a section: the finding, the key figures by layer, their formulas and sources."""
    from aniso.metrics import METRICS

    layers = report.layers
    keys = [key for key in KEY_FIGURES if any(key in m.metrics for m in layers.values())]
    cells = [[count(int(layer.counts.get("rows", 0))) for layer in layers.values()]]
    for key in keys:
        cells.append(column([layer.metrics.get(key, math.nan) for layer in layers.values()]))
    head = ["layer", "rows", *keys]
    lines = ["## Pairwise cosines and spectra", "", _escaped(summary(layers)), ""]
    lines += [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for name, row in zip(layers, zip(*cells, strict=True), strict=True):
        lines.append(_line([_escaped(name), *row]))
    lines += ["", *(f"- {_escaped(note)}" for note in [*report.notes, *row_notes(layers)])]
    known = [METRICS[key] for key in keys if key in METRICS]
    lines += [f"- `{m.key}`: {_escaped(m.formula)} ({_escaped(m.reference)})" for m in known]
    lines += ["", _source(report)]
    return "\n".join(lines).rstrip() + "\n"


def to_csv(report: Report) -> str:
    """Return one line per layer: name, dim, counts, every metric in full precision."""
    layers = report.layers
    keys = list(dict.fromkeys(key for layer in layers.values() for key in layer.metrics))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    known = counts_of(layers)
    writer.writerow(["layer", "dim", *known, *keys])
    for name, layer in layers.items():
        counts = [layer.counts.get(key, 0) for key in known]
        numbers = [_number(layer.metrics.get(key, math.nan)) for key in keys]
        writer.writerow([name, layer.dim, *counts, *numbers])
    return text.getvalue()


def _number(value: float) -> Any:
    """Return a float as the shortest text that reads back the same; nothing where undefined."""
    return float(value) if math.isfinite(value) else ""


def _source(report: Report) -> str:
    facts = [
        f"{key}: {describe(report.provenance[key])}" for key in _FACTS if key in report.provenance
    ]
    return _escaped("; ".join(facts))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Return text in which nothing is markup, on one line."""
    text = " ".join(text.split())
    for letter in "\\`*_[]<>|#":
        text = text.replace(letter, f"\\{letter}")
    return text
