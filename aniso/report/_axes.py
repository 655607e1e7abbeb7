"""Axes over layers: ticks that stay readable from 1 layer to 80, colours by depth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from aniso.report._labels import axis_labels, clip, printable, shared_path
from aniso.report._svg import DEPTH, STEPS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from aniso.metrics import LayerMetrics

TICKS = 10  # this many labels of three characters fit the width of a figure
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
KEY: dict[str, Any] = {
    "loc": "lower left",
    "bbox_to_anchor": (0, 1),
    "borderaxespad": 0.2,
    "handletextpad": 0.5,
}


def new_figure(height: float = 3.1) -> Figure:
    """Return an empty figure of the report's width."""
    return Figure(figsize=(5.0, height), layout="constrained")


def series(layers: Mapping[str, LayerMetrics], key: str) -> np.ndarray:
    """Return one metric of every layer; a layer without it is NaN."""
    return np.array([layer.metrics.get(key, math.nan) for layer in layers.values()], dtype=float)


def depth_colors(count: int) -> list[str]:
    """Return a colour per layer, from the first to the last."""
    return [DEPTH[round(index * (STEPS - 1) / max(count - 1, 1))] for index in range(count)]


def layer_axis(ax: Axes, names: Sequence[str]) -> None:
    """Give the x axis one place per layer, labelled as densely as can be read."""
    positions, labels = _ticks(names)
    margin = max(0.6, (4 - len(names)) / 2)
    ax.set_xlim(-margin, len(names) - 1 + margin)
    slant: dict[str, Any] = {"rotation": 38, "ha": "right"} if _crowded(labels) else {}
    ax.set_xticks(positions, labels, **slant)
    ax.tick_params(axis="x", length=2.5)
    ax.grid(visible=False, axis="x")
    prefix, suffix = shared_path(names)
    path = f"layer ({printable(clip(prefix, 30))}*{printable(clip(suffix, 20))})"
    ax.set_xlabel(path if prefix + suffix else "layer")


def depth_scale(ax: Axes, names: Sequence[str]) -> None:
    """Draw above the plot which colour is which layer."""
    count = len(names)
    scale = ax.inset_axes((0.0, 1.06, 1.0, 0.035))
    colors = ListedColormap(depth_colors(count))
    scale.pcolormesh(np.arange(count + 1) - 0.5, [0, 1], [np.arange(count)], cmap=colors)
    positions, labels = _ticks(names)
    if _crowded(labels):
        positions, labels = positions[:1], [f"{labels[0]} … {axis_labels(names)[-1]}"]
    scale.set_xticks(positions, labels, ha="left" if len(labels) < min(count, 2) else "center")
    scale.set_yticks([0.5], ["layer"])
    scale.grid(visible=False)
    scale.spines[:].set_visible(False)
    scale.tick_params(axis="y", length=0, labelsize=8)
    scale.tick_params(axis="x", top=True, bottom=False, labeltop=True, labelbottom=False, length=0)


def _crowded(labels: Sequence[str]) -> bool:
    return sum(len(label) + 2 for label in labels) > 54


def log_axis(axis: Any) -> None:
    """Label a logarithmic axis without math text: 10⁻³, small numbers as they are."""
    axis.set_major_formatter(lambda value, _: _power(value))
    axis.set_minor_formatter(NullFormatter())
    axis.set_minor_locator(NullLocator())


def _power(value: float) -> str:
    if value <= 0:
        return ""
    exponent = round(math.log10(value))
    return (
        f"{10**exponent}"
        if 0 <= exponent <= 3
        else f"10{exponent}".replace(str(exponent), str(exponent).translate(SUPERSCRIPT))
    )


def _ticks(names: Sequence[str]) -> tuple[list[int], list[str]]:
    labels = axis_labels(names)
    step = next(
        size for size in (1, 2, 4, 5, 8, 10, 20, 50, 100, 10**9) if size * TICKS >= len(names)
    )
    if step > 1 and "emb" in labels[0]:
        labels[0] = "emb"
    kept = [i for i, label in enumerate(labels) if _number(label, i) % step == 0 and i >= step]
    kept = [0, *kept] if step > 1 else list(range(len(names)))
    return kept, [labels[i] for i in kept]


def _number(label: str, position: int) -> int:
    return int(label) if label.isdecimal() else position
