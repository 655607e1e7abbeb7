"""The plots of the dimensions that make the mean cosine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import ListedColormap

from aniso.report._axes import KEY, layer_axis, new_figure
from aniso.report._svg import COLOR, HEAT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from aniso.metrics import LayerMetrics

TOP = 10
PARTS = (("largest", 0, 1, 1.0), ("next 2", 1, 3, 0.62), ("next 7", 3, TOP, 0.32))


def draw_parts(layers: Mapping[str, LayerMetrics]) -> Figure | None:
    """Draw the mean cosine of every layer as the sum of its dimensions, the largest first."""
    return _draw(layers, _bars)


def draw_rogue(layers: Mapping[str, LayerMetrics]) -> Figure | None:
    """Draw what the largest dimensions of any layer add to the mean cosine of each."""
    return _draw(layers, _heatmap)


def _draw(
    layers: Mapping[str, LayerMetrics], panel: Callable[[Axes, np.ndarray], None]
) -> Figure | None:
    shares = _matrix(layers)
    if not np.isfinite(shares).any():
        return None
    figure = new_figure()
    ax = figure.add_subplot()
    panel(ax, shares)
    layer_axis(ax, list(layers))
    return figure


def _matrix(layers: Mapping[str, LayerMetrics]) -> np.ndarray:
    """Return the contributions, [layers, dims], NaN where a layer has no such dimension."""
    width = max((layer.dim for layer in layers.values()), default=0)
    shares = np.full((len(layers), width), np.nan)
    for row, layer in zip(shares, layers.values(), strict=True):
        row[: len(layer.contributions)] = layer.contributions
    return shares


def _bars(ax: Axes, shares: np.ndarray) -> None:
    filled = np.nan_to_num(shares)
    ranked = np.sort(filled, axis=1)[:, ::-1]
    places, base = np.arange(len(shares)), np.zeros(len(shares))
    for label, start, stop, alpha in PARTS:
        part = ranked[:, start:stop].clip(min=0).sum(axis=1)
        ax.bar(places, part, 0.78, base, color=COLOR["c2"], alpha=alpha, label=label)
        base = base + part
    total = filled.sum(axis=1)
    rest = total - base
    bottom = np.where(rest >= 0, base, 0.0)
    ax.bar(places, rest, 0.78, bottom, color=COLOR["muted"], alpha=0.35, label="all others")
    if (rest < -0.01 * np.abs(total)).any():
        ax.plot(places, total, "D", color=COLOR["ink"], markersize=2.5, label="sum")
        ax.axhline(0, color=COLOR["muted"], linewidth=0.7)
    ax.set_ylabel("mean cosine")
    ax.legend(ncols=3 if ax.lines else 4, columnspacing=1.0, **KEY)


def _heatmap(ax: Axes, shares: np.ndarray) -> None:
    largest = np.nan_to_num(np.abs(shares)).max(axis=0)
    dims = np.argsort(-largest, kind="stable")[:TOP]
    cells = np.ma.masked_invalid(shares[:, dims].T)
    edges = np.arange(len(shares) + 1) - 0.5
    top = max(float(cells.max()), 1e-12)
    mesh = ax.pcolormesh(
        edges,
        np.arange(len(dims) + 1),
        cells,
        cmap=ListedColormap(HEAT),
        vmin=0,
        vmax=top,
        edgecolors="face",
        linewidth=0.4,
    )
    ax.set_yticks(np.arange(len(dims)) + 0.5, [f"dim {dim}" for dim in dims])
    ax.invert_yaxis()
    ax.grid(visible=False)
    ax.tick_params(axis="y", length=0)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.015, aspect=18, ticks=[0, top])
    bar.ax.set_yticklabels(["0", f"{top:.2g}"])
    bar.set_label("added to the mean cosine", fontsize=8.5)
    bar.outline.set_visible(False)
