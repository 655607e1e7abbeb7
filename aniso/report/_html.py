"""The self-contained HTML page."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from aniso.report._distribution import QUANTILES, basis, quantile_rows
from aniso.report._fall import (
    ENERGIES,
    fall_rows,
    fall_sentence,
    unresolved,
    unresolved_sentence,
)
from aniso.report._groups import group_rows, group_sentence
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
FALL_HEADINGS = [
    *(f"directions with {share:.0%} of the energy" for share in ENERGIES),
    "smallest σ / σ₁",
    "resolution floor / σ₁",
    "σ above the floor",
]
QUANTILE_HEADINGS = [
    "least",
    *(f"{q:.0%} quantile" for q in QUANTILES),
    "largest",
    "rows",
]
GROUP_HEADINGS = [
    "groups",
    "rows",
    "zero rows",
    "within, pairs weigh the same",
    "within, groups weigh the same",
    "between groups",
    "all pairs",
]


def render_html(report: Report) -> str:
    """Return the page of `report`; everything it shows or loads is inside it."""
    from aniso.metrics import METRICS

    layers, names = report.layers, list(report.layers)
    keys = _ordered_keys(layers, METRICS)
    mean = {name: layer.metrics.get("mean_cosine", math.nan) for name, layer in layers.items()}
    return render_page(
        "template.html.j2",
        lead=_lead(layers),
        facts=_facts(report.provenance),
        notes=[*report.notes, *row_notes(layers)],
        kinds=_kinds(report),
        main=_rows(layers, [key for key in KEY_FIGURES if key in keys], ["rows"]),
        whole=_rows_of_all(layers),
        full=metric_rows(layers),
        fall=texts(FALL_HEADINGS, fall_rows(layers)),
        fall_kind="bounded" if unresolved(layers) else "exact",
        quantiles=texts(QUANTILE_HEADINGS, quantile_rows(report.distributions, names)),
        sampled=basis(report.distributions),
        groups=texts(GROUP_HEADINGS, group_rows(report.groups, names, mean)),
        grouping=group_sentence(report.facts),
        plots=draw_plots(report) if layers else [],
    )


def render_page(template: str, **context: Any) -> str:
    """Return a template with style, colours and glossary around it."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    from aniso.metrics import METRICS

    environment = Environment(
        loader=FunctionLoader(_resource),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        css=_resource("report.css"),
        light=variables(dark=False),
        dark=variables(dark=True),
        glossary=list(METRICS.values()),
        explained=set(METRICS),
        **context,
    )


def metric_rows(layers: Layers) -> dict[str, Any]:
    """Return the table of every count and metric of every layer."""
    from aniso.metrics import METRICS

    return _rows(layers, _ordered_keys(layers, METRICS), ["dim", *counts_of(layers)])


def texts(headings: list[str], rows: list[tuple[str, list[str]]]) -> dict[str, Any]:
    """Return a table of the page from headings and lines of layer and cells."""
    short = short_names([name for name, _ in rows], NAME_WIDTH)
    lines = [(name, s, cells) for (name, cells), s in zip(rows, short, strict=True)]
    return {"keys": headings, "layers": lines}


def _kinds(report: Report) -> list[tuple[str, str]]:
    """Return what is exact, what is sampled, what is bounded, and what was left out."""
    found = [
        (
            "exact",
            "Every metric, and every table and figure marked so: functions of sums over all rows "
            "that count; no row and no pair of rows is sampled for them.",
        )
    ]
    if report.distributions:
        kind, _, rest = basis(report.distributions).partition(": ")
        found.append((kind, f"The distribution of the cosine: {rest}."))
    if any(layer.resolution_floor for layer in report.layers.values()):
        found.append(
            (
                "bounded",
                "Singular values under the resolution floor √(d·ε·σ₁² + 2·σ₁·‖Δ‖), ε of float64 "
                "and Δ what rounding the rows leaves in the Gram matrix: anything between 0 and "
                "the floor.",
            )
        )
    left_out = row_notes(report.layers)
    every = "Nothing: every row of every layer is counted."
    found.append(("left out", " ".join(left_out) if left_out else every))
    return found


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


def _lead(layers: Layers) -> list[str]:
    """Return what was found, a sentence or two per question."""
    dims = sorted({layer.dim for layer in layers.values()})
    sizes = " and ".join(f"{dim:,}" for dim in dims) if len(dims) < 3 else f"up to {dims[-1]:,}"
    plural = "s" if len(layers) != 1 else ""
    facts = f"{len(layers)} layer{plural} of {sizes} dimensions. " if layers else "No layers. "
    known = {name: layer.metrics.get("mean_cosine", math.nan) for name, layer in layers.items()}
    known = {name: value for name, value in known.items() if math.isfinite(value)}
    if not known:
        return [facts]
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    fall = fall_sentence(high, layers[high]) + unresolved_sentence(layers, high)
    if len(known) > 1:
        facts += (
            f"{summary(layers)} The mean cosine of two rows runs from {known[low]:z.3f} ({low}) "
            f"to {known[high]:z.3f} ({high})."
        )
    return [facts, fall] if fall else [facts]
