"""Plots of experiments as SVG files that stand alone."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping

_STYLES = {"paper": "-", "continuous": "--"}


def by_layer(values: Mapping[str, Mapping[str, float]], label: str) -> str:
    """One line per method over the layers, as the text of an SVG file.

    Methods called "paper α" and "continuous α" share a colour per α, and a dash per mode.

    Args:
        values: {layer: {method: number}}.
        label: Of the vertical axis.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError('plots need matplotlib; pip install "aniso[experiments]"') from error
    names, methods = list(values), list(next(iter(values.values())))
    suffixes = list(dict.fromkeys(m.split()[1] for m in methods if " " in m))
    shades = matplotlib.colormaps["viridis"]
    with matplotlib.rc_context({"svg.hashsalt": "aniso", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        ax = figure.add_subplot()
        for method in methods:
            mode, _, suffix = method.partition(" ")
            color = {"plain": "black", "whitening": "tab:red"}.get(mode) or shades(
                suffixes.index(suffix) / len(suffixes)
            )
            line = [values[name][method] for name in names]
            ax.plot(line, _STYLES.get(mode, "-"), color=color, label=method, marker="o", ms=3)
        ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
        ax.set_ylabel(label)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
