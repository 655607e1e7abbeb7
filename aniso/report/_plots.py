"""The plots of a report, each with the sentence that says how to read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from aniso.report._axes import KEY, layer_axis, log_axis, new_figure, series
from aniso.report._rogue import draw_parts, draw_rogue
from aniso.report._spectra import draw_spectra
from aniso.report._svg import COLOR, house_style, to_svg

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from aniso.metrics import LayerMetrics

    Layers = Mapping[str, LayerMetrics]

RANKS = {
    "rankme": ("RankMe", "c1", "o"),
    "effective_rank": ("effective rank", "c3", "s"),
    "participation_ratio": ("participation ratio", "c2", "^"),
}


@dataclass(frozen=True)
class Plot:
    """One figure of the page; without `svg`, `missing` says why it is not there."""

    key: str
    title: str
    caption: str
    svg: str | None
    missing: str


@dataclass(frozen=True)
class _Recipe:
    key: str
    title: str
    caption: str
    missing: str
    draw: Callable[[Layers], Figure | None]


def draw_plots(layers: Layers) -> list[Plot]:
    """Return every plot of the report, in the order of the page."""
    with house_style():
        return [_plot(recipe, layers) for recipe in RECIPES]


def _plot(recipe: _Recipe, layers: Layers) -> Plot:
    figure = recipe.draw(layers)
    svg = None if figure is None else to_svg(figure, f"plot-{recipe.key}", recipe.title)
    return Plot(recipe.key, recipe.title, recipe.caption, svg, recipe.missing)


def _line(ax: Axes, values: np.ndarray, label: str, color: str, marker: str) -> None:
    size = 4.0 if len(values) <= 40 else 2.2
    ax.plot(values, label=label, color=COLOR[color], marker=marker, markersize=size)


def draw_level(layers: Layers) -> Figure | None:
    """Draw mean cosine and relative drift by layer."""
    cosine, drift = series(layers, "mean_cosine"), series(layers, "relative_drift")
    if not np.isfinite([cosine, drift]).any():
        return None
    figure = new_figure()
    ax = figure.add_subplot()
    _line(ax, cosine, "mean cosine", "c1", "o")
    _line(ax, drift, "relative drift", "c2", "s")
    lowest = np.nanmin([cosine, drift])
    ax.set_ylim(min(0.0, lowest - 0.05), 1.02)
    ax.legend(ncols=2, **KEY)
    layer_axis(ax, list(layers))
    return figure


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
    _line(ax, mean, "mean cosine ± one standard deviation", "c1", "o")
    ax.set_ylim(max(-1.0, min(-0.2, np.nanmin(np.append(low, 0)) - 0.1)), 1.02)
    ax.legend(**KEY)
    layer_axis(ax, list(layers))
    return figure


def draw_ranks(layers: Layers) -> Figure | None:
    """Draw three counts of the dimensions in use, each divided by the dimensions there are."""
    dims = np.array([layer.dim for layer in layers.values()], dtype=float)
    shares = {key: series(layers, key) / dims for key in RANKS}
    finite = np.concatenate(
        [values[np.isfinite(values) & (values > 0)] for values in shares.values()]
    )
    if not finite.size:
        return None
    figure = new_figure()
    ax = figure.add_subplot()
    for key, values in shares.items():
        _line(ax, values, *RANKS[key])
    if finite.min() < 0.02:
        ax.set_yscale("log")
        log_axis(ax.yaxis)
    else:
        ax.set_ylim(0, 1.02)
    ax.set_ylabel("share of all dimensions")
    ax.legend(ncols=3, **KEY)
    layer_axis(ax, list(layers))
    return figure


RECIPES = (
    _Recipe(
        "level",
        "Mean cosine and relative drift",
        "How alike any two rows are (mean cosine over all pairs), and how much of their length is "
        "the part that all rows share (relative drift); 0 is directionless, 1 is one direction.",
        "No layer has a defined mean cosine or drift.",
        draw_level,
    ),
    _Recipe(
        "spread",
        "Spread of the cosine",
        "The cosine of two rows drawn at random falls mostly inside the band; a narrow band far "
        "from 0 means that all rows crowd into one cone.",
        "No layer has a defined mean cosine.",
        draw_spread,
    ),
    _Recipe(
        "spectra",
        "Singular spectra",
        "Singular values of the uncentred rows over the largest: a cliff after the first is one "
        "dominant direction, and what lies under the dashed floor may be rounding noise.",
        "The analysis kept no Gram matrix, so there are no singular values to draw.",
        draw_spectra,
    ),
    _Recipe(
        "ranks",
        "Dimensions in use",
        "Three answers to how many dimensions carry the rows, over the dimensions there are; "
        "participation ratio weighs large directions most and RankMe least.",
        "No rank is defined: the analysis kept no Gram matrix, or too few rows.",
        draw_ranks,
    ),
    _Recipe(
        "parts",
        "What the mean cosine is made of",
        "The mean cosine is a sum over dimensions; where one or three of them make most of a bar, "
        "the likeness of the rows is theirs and not that of the space.",
        "No layer has a defined mean cosine to be shared out.",
        draw_parts,
    ),
    _Recipe(
        "rogue",
        "Rogue dimensions",
        "What the ten largest dimensions of any layer add to the mean cosine of each: a strong "
        "row is a rogue dimension, and shows in which layers it is one.",
        "No layer has a defined mean cosine to be shared out.",
        draw_rogue,
    ),
)
