"""Plots of experiments as SVG files that stand alone."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aniso.errors import InputError
from aniso.report._labels import axis_labels, shared_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MOST_NAMES = 16
_STYLES = {"paper": "-", "continuous": "--"}


@dataclass(frozen=True)
class Line:
    """One curve; a label of "" stays out of the legend, style "" leaves the dots alone.

    A broad one shows on both sides of another that lies upon it.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: Any = None
    style: str = "-"
    dots: bool = True
    broad: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes: the lines, what the axes show, names on x, logarithmic axes ("x", "xy")."""

    title: str
    x: str
    lines: Sequence[Line]
    ticks: Sequence[str] = ()
    log: str = ""
    y: str = ""


def shade(position: int, count: int) -> Any:
    """The colour of one out of count things in order."""
    colormaps = _matplotlib().colormaps
    return colormaps["viridis"](position / count)


def draw(panels: Sequence[Panel]) -> str:
    """The panels side by side, as the text of an SVG file.

    Panels with the same labels have one legend at the right, others one each.

    Raises:
        InputError: matplotlib is not installed.
    """
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "aniso", "svg.fonttype": "none"}):
        figure = Figure(figsize=(2.5 + 5.5 * len(panels), 4.5), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(grid, panels, strict=True):
            _draw_panel(axes, panel)
        if len({tuple(line.label for line in panel.lines) for panel in panels}) == 1:
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        else:
            for axes in grid:
                axes.legend(fontsize=8, frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise InputError('plots need matplotlib; pip install "aniso[experiments]"') from error
    return matplotlib


def _draw_panel(axes: Any, panel: Panel) -> None:
    for line in panel.lines:
        marks: dict[str, Any] = {"marker": "o" if line.dots else "", "ms": 3, "ls": line.style}
        marks |= {"lw": 5, "ms": 7, "alpha": 0.5} if line.broad else {}
        axes.plot(line.x, line.y, color=line.color, label=line.label or "_", **marks)
    if panel.ticks:
        places = range(0, len(panel.ticks), 1 + (len(panel.ticks) - 1) // _MOST_NAMES)
        names = [panel.ticks[place] for place in places]
        axes.set_xticks(places, names, rotation=45, ha="right", fontsize=8)
    for axis, scale in (("x", axes.set_xscale), ("y", axes.set_yscale)):
        if axis in panel.log:
            _set_log(scale, [value for line in panel.lines for value in getattr(line, axis)])
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.grid(alpha=0.3)


def layer_labels(models: Mapping[str, Mapping[str, Any]]) -> tuple[str, list[str]]:
    """What an axis over the layers of models is called, and their short names.

    There are no names where the models' layers differ: positions stand for themselves.
    """
    if len(set(map(tuple, models.values()))) != 1:
        return "position of the layer", []
    names = list(next(iter(models.values())))
    prefix, suffix = shared_path(names)
    return f"layer ({prefix}*{suffix})" if prefix + suffix else "layer", axis_labels(names)


def _set_log(scale: Any, values: Sequence[float]) -> None:
    """Makes an axis logarithmic; around 0, where values reach it, linear up to 1."""
    known = [value for value in values if not math.isnan(value)]
    if known and min(known) > 0:
        scale("log")
    else:
        scale("symlog", linthresh=1)


def by_layer(values: Mapping[str, Mapping[str, float]], label: str) -> str:
    """One line per method over the layers, as the text of an SVG file.

    Methods called "paper α" and "continuous α" share a colour per α, and a dash per mode.

    Args:
        values: {layer: {method: number}}.
        label: Of the vertical axis.

    Raises:
        InputError: matplotlib is not installed.
    """
    names, methods = list(values), list(next(iter(values.values())))
    suffixes = list(dict.fromkeys(m.split()[1] for m in methods if " " in m))
    lines = []
    for method in methods:
        mode, _, suffix = method.partition(" ")
        color = {"plain": "black", "whitening": "tab:red"}.get(mode) or shade(
            suffixes.index(suffix), len(suffixes)
        )
        heights = [values[name][method] for name in names]
        style = _STYLES.get(mode, "-")
        lines.append(Line(method, range(len(names)), heights, color, style))
    path, ticks = layer_labels({"": values})
    return draw([Panel("", path, lines, ticks, y=label)])
