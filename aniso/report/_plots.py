"""The plots of a report, each with the sentence that says how to read it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from aniso.report._axes import KEY, layer_axis, log_axis, new_figure, series
from aniso.report._distribution import draw_distribution
from aniso.report._fall import unresolved
from aniso.report._rogue import draw_parts, draw_rogue
from aniso.report._spectra import draw_spectra
from aniso.report._svg import COLOR, house_style, to_svg

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from aniso.metrics import LayerMetrics
    from aniso.report._report import Report

    Layers = Mapping[str, LayerMetrics]

RANKS = {
    "rankme": ("RankMe / d", "c1", "o"),
    "effective_rank": ("effective rank / d", "c3", "s"),
    "isoscore": ("IsoScore", "c2", "^"),
}
ROGUE = 3


@dataclass(frozen=True)
class Plot:
    """One figure of the page; without `svg`, `missing` says why it is not there.

    `kind` says whether what it shows is exact, sampled or bounded.
    """

    key: str
    title: str
    caption: str
    svg: str | None
    missing: str
    kind: str = "exact"


@dataclass(frozen=True)
class Recipe:
    """How to draw one figure of a page from what the page is about."""

    key: str
    title: str
    caption: str
    missing: str
    draw: Callable[[Any], Figure | None]


def draw_plots(report: Report) -> list[Plot]:
    """Return every plot of the report, in the order of the page."""
    plots = draw(RECIPES, report.layers)
    kind = "exact" if all(one.exact for one in report.distributions.values()) else "sampled"
    drawn = [replace(plot, kind=kind) for plot in draw([DISTRIBUTION], report)]
    if unresolved(report.layers):
        plots = [replace(p, kind="bounded") if p.key == "spectra" else p for p in plots]
    return [*plots[:2], *drawn, *plots[2:]]


def draw(recipes: Sequence[Recipe], subject: Any) -> list[Plot]:
    """Return the plots of `subject`, in the report's style."""
    with house_style():
        return [_plot(recipe, recipe.draw(subject)) for recipe in recipes]


def _plot(recipe: Recipe, figure: Figure | None) -> Plot:
    svg = None if figure is None else to_svg(figure, f"plot-{recipe.key}", recipe.title)
    return Plot(recipe.key, recipe.title, recipe.caption, svg, recipe.missing)


def line(ax: Axes, values: np.ndarray, label: str, color: str, marker: str) -> None:
    """Draw one value per layer, with smaller markers where layers are many."""
    size = 4.0 if len(values) <= 40 else 2.2
    ax.plot(values, label=label, color=COLOR[color], marker=marker, markersize=size)


def draw_level(layers: Layers) -> Figure | None:
    """Draw mean cosine and relative drift by layer."""
    cosine, drift = series(layers, "mean_cosine"), series(layers, "relative_drift")
    if not np.isfinite([cosine, drift]).any():
        return None
    figure = new_figure()
    ax = figure.add_subplot()
    rest = np.array([_without_rogue(layer) for layer in layers.values()])
    line(ax, cosine, "mean cosine", "c1", "o")
    line(ax, rest, f"less its {ROGUE} largest dimensions", "c3", "^")
    line(ax, drift, "relative drift", "c2", "s")
    lowest = np.nanmin([cosine, drift, rest])
    ax.set_ylim(min(0.0, lowest - 0.05), 1.02)
    ax.set_ylabel("cosine; share of the mean norm")
    ax.legend(ncols=2, **KEY)
    layer_axis(ax, list(layers))
    return figure


def _without_rogue(layer: LayerMetrics) -> float:
    """Return the mean cosine less the largest contributions of single dimensions."""
    shares = np.sort(np.asarray(layer.contributions, dtype=float))
    return float(shares[: max(0, len(shares) - ROGUE)].sum()) if len(shares) else np.nan


def draw_spread(layers: Layers) -> Figure | None:
    """Draw the mean of the cosine by layer, with one standard deviation to either side."""
    mean, std = series(layers, "mean_cosine"), series(layers, "std_cosine")
    if not np.isfinite(mean).any():
        return None
    low, high = np.clip(mean - std, -1, 1), np.clip(mean + std, -1, 1)
    figure = new_figure()
    ax = figure.add_subplot()
    places = np.arange(len(mean))
    ax.axhline(0, color=COLOR["muted"], linewidth=0.7)
    ax.fill_between(places, low, high, color=COLOR["c1"], alpha=0.18, linewidth=0)
    if len(mean) <= 40:
        ax.vlines(places, low, high, color=COLOR["c1"], alpha=0.55, linewidth=1.1)
    line(ax, mean, "mean cosine ± one standard deviation", "c1", "o")
    ax.set_ylim(max(-1.0, min(-0.2, np.nanmin(np.append(low, 0)) - 0.1)), 1.02)
    ax.set_ylabel("cosine of two rows")
    ax.legend(**KEY)
    layer_axis(ax, list(layers))
    return figure


def draw_ranks(layers: Layers) -> Figure | None:
    """Draw three counts of the dimensions in use, each divided by the dimensions there are."""
    dims = np.array([layer.dim for layer in layers.values()], dtype=float)
    shares = {key: series(layers, key) / dims for key in RANKS}
    shares["isoscore"] *= dims
    finite = np.concatenate(
        [values[np.isfinite(values) & (values > 0)] for values in shares.values()]
    )
    if not finite.size:
        return None
    figure = new_figure()
    ax = figure.add_subplot()
    for key, values in shares.items():
        line(ax, values, *RANKS[key])
    if finite.min() < 0.02:
        ax.set_yscale("log")
        log_axis(ax.yaxis)
    else:
        ax.set_ylim(0, 1.02)
    ax.set_ylabel("share of all dimensions")
    ax.legend(ncols=3, **KEY)
    layer_axis(ax, list(layers))
    return figure


DISTRIBUTION = Recipe(
    "distribution",
    "Distribution of the cosine",
    "How often two rows have which cosine: a strong narrow band far from 0 is a cone, two bands "
    "are two kinds of rows, and the lines hold the median and the middle 90%.",
    "No rows could be drawn: these states hold sums alone. aniso analyze of a dump, and aniso "
    "capture, draw them; so does aniso.cosine_histogram.",
    lambda report: draw_distribution(report.distributions, list(report.layers)),
)

RECIPES = (
    Recipe(
        "level",
        "Mean cosine and relative drift",
        "How alike any two rows are (mean cosine over all pairs), what of it is left without the "
        f"{ROGUE} dimensions that add most in each layer, and how much of their length is the part "
        "that all rows share (relative drift); 0 is directionless, 1 is one direction.",
        "No layer has a defined mean cosine or drift.",
        draw_level,
    ),
    Recipe(
        "spread",
        "Spread of the cosine",
        "The cosine of two rows drawn at random falls mostly inside the band; a narrow band far "
        "from 0 means that all rows crowd into one cone.",
        "No layer has a defined mean cosine.",
        draw_spread,
    ),
    Recipe(
        "spectra",
        "Singular spectra",
        "Singular values of the uncentred rows over the largest: a cliff after the first is one "
        "dominant direction, and what lies under the dashed floor may be rounding noise.",
        "The analysis kept no Gram matrix, so there are no singular values to draw.",
        draw_spectra,
    ),
    Recipe(
        "ranks",
        "Dimensions in use",
        "Three answers to how many dimensions carry the rows, over the d there are; IsoScore (the "
        "participation ratio, brought to 0…1) weighs large directions most and RankMe least.",
        "No rank is defined: the analysis kept no Gram matrix, or too few rows.",
        draw_ranks,
    ),
    Recipe(
        "parts",
        "What the mean cosine is made of",
        "The mean cosine is a sum over dimensions; where one or three of them make most of a bar, "
        "the likeness of the rows is theirs and not that of the space.",
        "No layer has a defined mean cosine to be shared out.",
        draw_parts,
    ),
    Recipe(
        "rogue",
        "Rogue dimensions",
        "What the ten largest dimensions of any layer add to the mean cosine of each: a strong "
        "row is a rogue dimension, and shows in which layers it is one.",
        "No layer has a defined mean cosine to be shared out.",
        draw_rogue,
    ),
)
