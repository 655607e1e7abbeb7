"""The self-contained HTML page."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from aniso.report._labels import row_notes, short_names
from aniso.report._palette import variables
from aniso.report._plain import column, count, describe
from aniso.report._plots import draw_plots
from aniso.report._summary import summary

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aniso.metrics import LayerMetrics
    from aniso.report._report import Report

    Layers = Mapping[str, LayerMetrics]

KEY_FIGURES = (
    "mean_cosine",
    "std_cosine",
    "relative_drift",
    "explained_variance_1",
    "rankme",
    "effective_rank",
    "participation_ratio",
    "isoscore",
)
COUNTS = ("rows", "zero_rows", "nonfinite_rows", "masked_rows")
LEFT_OUT_COUNTS = ("excluded_rows", "outlier_rows")
NAME_WIDTH = 32
FIRST_FACTS = ("sources", "source", "model", "layers", "rows", "aniso", "version", "date")


def render_html(report: Report) -> str:
    """Return the page of `report`; everything it shows or loads is inside it."""
    from jinja2 import Environment, StrictUndefined

    from aniso.metrics import METRICS

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_resource("template.html.j2"))
    keys = _ordered_keys(report.layers, METRICS)
    return template.render(
        css=_resource("report.css"),
        light=variables(dark=False),
        dark=variables(dark=True),
        lead=_lead(report.layers),
        facts=_facts(report.provenance),
        notes=[*report.notes, *row_notes(report.layers)],
        main=_rows(report.layers, [key for key in KEY_FIGURES if key in keys], ["rows"]),
        full=_rows(report.layers, keys, ["dim", *counts_of(report.layers)]),
        whole=_rows_of_all(report.layers),
        plots=draw_plots(report.layers) if report.layers else [],
        glossary=list(METRICS.values()),
        explained=set(METRICS),
    )


def _resource(name: str) -> str:
    return files("aniso.report").joinpath(name).read_text(encoding="utf-8")


def _ordered_keys(layers: Layers, known: Iterable[str]) -> list[str]:
    present = dict.fromkeys(key for layer in layers.values() for key in layer.metrics)
    return [key for key in known if key in present] + [key for key in present if key not in known]


def _rows(layers: Layers, keys: list[str], counts: list[str]) -> dict[str, Any]:
    """Return a table: the headings, and for every layer its name and cells."""
    cells = [[count(_counted(layer, key)) for layer in layers.values()] for key in counts]
    for key in keys:
        cells.append(column([layer.metrics.get(key, math.nan) for layer in layers.values()]))
    short = short_names(list(layers), NAME_WIDTH)
    rows = zip(layers, short, zip(*cells, strict=True), strict=True)
    return {"keys": counts + keys, "layers": list(rows)}


def _rows_of_all(layers: Layers) -> dict[str, Any] | None:
    """Return the key figures with the rows that a capture left out; None where none were."""
    whole = {
        name: replace(layer, metrics=layer.metrics_of_all, counts=_counts_of_all(layer))
        for name, layer in layers.items()
        if layer.metrics_of_all is not None
    }
    if not any(layer.counts.get(key, 0) for layer in layers.values() for key in LEFT_OUT_COUNTS):
        return None
    present = {key for layer in whole.values() for key in layer.metrics}
    return _rows(whole, [key for key in KEY_FIGURES if key in present], ["rows"])


def _counts_of_all(layer: LayerMetrics) -> dict[str, int]:
    left_out = sum(layer.counts.get(key, 0) for key in LEFT_OUT_COUNTS)
    return {"rows": layer.counts["rows"] + left_out}


def counts_of(layers: Layers) -> list[str]:
    """Return the counts that layers have: those of rows left out only where a rule was given."""
    more = [key for key in LEFT_OUT_COUNTS if any(key in m.counts for m in layers.values())]
    return [*COUNTS, *more]


def _counted(layer: LayerMetrics, key: str) -> int:
    return int(layer.dim if key == "dim" else layer.counts.get(key, 0))


def _facts(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    first = [key for key in FIRST_FACTS if key in provenance]
    keys = first + [key for key in provenance if key not in first]
    return [(str(key), describe(provenance[key])) for key in keys]


def _lead(layers: Layers) -> str:
    """Return the finding in one or two sentences."""
    dims = sorted({layer.dim for layer in layers.values()})
    sizes = " and ".join(f"{dim:,}" for dim in dims) if len(dims) < 3 else f"up to {dims[-1]:,}"
    plural = "s" if len(layers) != 1 else ""
    facts = f"{len(layers)} layer{plural} of {sizes} dimensions. " if layers else "No layers. "
    known = {name: layer.metrics.get("mean_cosine", math.nan) for name, layer in layers.items()}
    known = {name: value for name, value in known.items() if math.isfinite(value)}
    if len(known) < 2:
        return facts
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    return facts + (
        f"{summary(layers)} The mean cosine of two rows runs from {known[low]:.3f} ({low}) "
        f"to {known[high]:.3f} ({high})."
    )
