"""The self-contained HTML page of a comparison."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from aniso.report._axes import KEY, layer_axis, log_axis, new_figure, series
from aniso.report._fall import spectrum_of
from aniso.report._html import KEY_FIGURES, metric_rows, render_page, texts
from aniso.report._labels import row_notes
from aniso.report._plain import EMPTY, column, count
from aniso.report._plots import Recipe, draw, line
from aniso.report._svg import COLOR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from aniso.metrics import LayerMetrics
    from aniso.report._comparison import ComparisonReport

    Sides = tuple[dict[str, LayerMetrics], dict[str, LayerMetrics]]


def render_comparison(report: ComparisonReport) -> str:
    """Return the page of `report`; everything it shows or loads is inside it."""
    before, after = sides_of(report)
    rest = [f"A: {note}" for note in row_notes(before)]
    rest += [f"B: {note}" for note in row_notes(after)]
    return render_page(
        "comparison.html.j2",
        a=report.a,
        b=report.b,
        lead=_lead(report),
        notes=[*report.notes, *rest],
        delta=_delta_table(report),
        sides=[
            ("All metrics before (A)", metric_rows(before)),
            ("All metrics after (B)", metric_rows(after)),
        ],
        plots=draw(RECIPES, report) if report.layers else [],
    )


def sides_of(report: ComparisonReport) -> Sides:
    """Return the layers of A and those of B."""
    layers = report.layers.items()
    return {k: v.metrics_a for k, v in layers}, {k: v.metrics_b for k, v in layers}


def most_changed(report: ComparisonReport) -> str | None:
    """Return the layer whose mean cosine changed most."""
    changes = {k: abs(v.delta.get("mean_cosine", math.nan)) for k, v in report.layers.items()}
    changes = {name: value for name, value in changes.items() if math.isfinite(value)}
    return max(changes, key=changes.__getitem__) if changes else None


def _lead(report: ComparisonReport) -> str:
    name = most_changed(report)
    if name is None:
        return f"{len(report.layers)} layers; no mean cosine is defined in both."
    layer = report.layers[name]
    old, new = (m.metrics["mean_cosine"] for m in (layer.metrics_a, layer.metrics_b))
    text = (
        f"{name} changed most of {len(report.layers)} layers: its mean cosine went from {old:.3f} "
        f"to {new:.3f}"
    )
    ranks = [m.metrics.get("effective_rank", math.nan) for m in (layer.metrics_a, layer.metrics_b)]
    if all(map(math.isfinite, ranks)):
        text += f", its effective rank from {ranks[0]:.1f} to {ranks[1]:.1f}"
    if layer.debiased_cka is not None and math.isfinite(layer.debiased_cka):
        text += f"; debiased CKA of the two is {layer.debiased_cka:.3f}"
    return text + "."


def _delta_table(report: ComparisonReport) -> dict[str, Any]:
    layers = list(report.layers.values())
    headings, cells = [], []
    if any(layer.rows is not None for layer in layers):
        headings = ["paired rows", "RSA-Pearson", "debiased CKA"]
        cells = [
            [EMPTY if layer.rows is None else count(layer.rows) for layer in layers],
            _numbers([layer.rsa_pearson for layer in layers]),
            _numbers([layer.debiased_cka for layer in layers]),
        ]
    for key in KEY_FIGURES:
        if any(key in layer.delta for layer in layers):
            headings.append(key)
            values = _numbers([layer.delta.get(key) for layer in layers])
            cells.append([f"+{text}" if text[0].isdigit() else text for text in values])
    lines = [list(row) for row in zip(*cells, strict=True)]
    return texts(headings, list(zip(report.layers, lines, strict=True)))


def _numbers(values: list[float | None]) -> list[str]:
    return column([math.nan if value is None else value for value in values])


def _both(report: ComparisonReport, key: str, label: str, share: bool = False) -> Figure | None:
    """Draw one metric of A and of B by layer; with `share` over the width."""
    values = [series(side, key) for side in sides_of(report)]
    if share:
        widths = [[layer.dim for layer in side.values()] for side in sides_of(report)]
        values = [found / np.array(dims) for found, dims in zip(values, widths, strict=True)]
    if not np.isfinite(values).any():
        return None
    figure = new_figure()
    ax = figure.add_subplot()
    line(ax, values[0], "before (A)", "muted", "s")
    line(ax, values[1], "after (B)", "c1", "o")
    ax.set_ylim(min(0.0, float(np.nanmin(values)) - 0.05), 1.02)
    ax.set_ylabel(label)
    ax.legend(ncols=2, **KEY)
    layer_axis(ax, list(report.layers))
    return figure


def _similarity(report: ComparisonReport) -> Figure | None:
    """Draw RSA-Pearson and debiased CKA by layer."""
    pairs = [(layer.rsa_pearson, layer.debiased_cka) for layer in report.layers.values()]
    values = np.array([[np.nan if x is None else x for x in pair] for pair in pairs]).T
    if not np.isfinite(values).any():
        return None
    figure = new_figure()
    ax = figure.add_subplot()
    line(ax, values[0], "RSA-Pearson", "c2", "s")
    line(ax, values[1], "debiased CKA", "c1", "o")
    ax.set_ylim(min(0.0, float(np.nanmin(values)) - 0.05), 1.02)
    ax.set_ylabel("likeness of A and B")
    ax.legend(ncols=2, **KEY)
    layer_axis(ax, list(report.layers))
    return figure


def _spectra(report: ComparisonReport) -> Figure | None:
    """Draw the spectrum of the most changed layer before and after."""
    name = most_changed(report)
    if name is None:
        return None
    layer = report.layers[name]
    found = [spectrum_of(layer.metrics_a), spectrum_of(layer.metrics_b)]
    spectra = [sigma for sigma in found if sigma is not None]
    if len(spectra) < 2:
        return None
    figure = new_figure()
    ax = figure.add_subplot()
    ax.set(xscale="log", yscale="log", ylabel="σₖ / σ₁")
    ax.set_xlabel(f"index k of the singular value of {name}")
    styles = (("before (A)", "muted", "--"), ("after (B)", "c1", "-"))
    for sigma, (label, color, style) in zip(spectra, styles, strict=True):
        kept = sigma[sigma > sigma[0] * 1e-8] / sigma[0]
        ax.plot(np.arange(len(kept)) + 1, kept, style, color=COLOR[color], label=label)
    ax.legend(ncols=2, **KEY)
    log_axis(ax.xaxis)
    log_axis(ax.yaxis)
    return figure


RECIPES = (
    Recipe(
        "cosine",
        "Mean cosine before and after",
        "How alike any two rows are, over all pairs of each source.",
        "No layer has a defined mean cosine.",
        lambda report: _both(report, "mean_cosine", "mean cosine"),
    ),
    Recipe(
        "rank",
        "Effective rank before and after",
        "How many directions carry the rows, over the dimensions there are.",
        "No rank is defined: the states keep no Gram matrix, or too few rows.",
        lambda report: _both(report, "effective_rank", "effective rank / d", share=True),
    ),
    Recipe(
        "drift",
        "Relative drift before and after",
        "How much of the rows' length is the part that all of them share.",
        "No layer has a defined drift.",
        lambda report: _both(report, "relative_drift", "relative drift"),
    ),
    Recipe(
        "isoscore",
        "IsoScore before and after",
        "1 where the centred rows spread evenly over all dimensions, 0 where over one.",
        "No IsoScore is defined: the states keep no Gram matrix.",
        lambda report: _both(report, "isoscore", "IsoScore"),
    ),
    Recipe(
        "spectrum",
        "Spectrum of the layer that changed most",
        "Singular values of the uncentred rows over the largest, before and after.",
        "The states keep no Gram matrix, so there are no singular values to draw.",
        _spectra,
    ),
    Recipe(
        "likeness",
        "Likeness of the same tokens",
        "Whether the pairs that were alike before are alike after (RSA-Pearson), and whether one "
        "is a rotation of the other (debiased CKA); 1 is no change of geometry.",
        "Rows are not paired: RSA-Pearson and debiased CKA need the dumps of both.",
        _similarity,
    ),
)
