"""The plot of all singular spectra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aniso.report._axes import depth_colors, depth_scale, log_axis, new_figure
from aniso.report._fall import spectrum_of
from aniso.report._svg import COLOR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from aniso.metrics import LayerMetrics

POINTS = 70
NOTE: dict[str, Any] = {"fontsize": 8, "color": COLOR["muted"], "va": "bottom"}


def draw_spectra(layers: Mapping[str, LayerMetrics]) -> Figure | None:
    """Draw σ_k/σ₁ of every layer over k, and the floor under which it is rounding noise."""
    spectra = [_relative(layer) for layer in layers.values()]
    drawn = [spectrum for spectrum in spectra if spectrum is not None]
    if not drawn:
        return None
    figure = new_figure()
    ax = figure.add_subplot()
    ax.set(xscale="log", yscale="log", xlabel="index k of the singular value", ylabel="σₖ / σ₁")
    colors = depth_colors(len(layers))
    for spectrum, color in zip(spectra, colors, strict=True):
        if spectrum is not None:
            _curve(ax, spectrum[0], color, thin=len(drawn) > 12)
    _floors(ax, spectra)
    log_axis(ax.xaxis)
    log_axis(ax.yaxis)
    depth_scale(ax, list(layers))
    return figure


def _relative(layer: LayerMetrics) -> tuple[np.ndarray, float] | None:
    values = spectrum_of(layer)
    if values is None:
        return None
    return values / values[0], (layer.resolution_floor or 0.0) / float(values[0])


def _curve(ax: Axes, spectrum: np.ndarray, color: str, thin: bool) -> None:
    kept = _sample(len(spectrum))
    values = np.where(spectrum > 0, spectrum, np.nan)[kept]
    marker = "o" if len(spectrum) == 1 else None
    ax.plot(kept + 1, values, color=color, linewidth=1.0 if thin else 1.5, marker=marker)


def _sample(count: int) -> np.ndarray:
    """Return positions dense at both ends, where a spectrum bends."""
    steps = np.geomspace(1, count, POINTS).astype(int)
    return np.unique(np.concatenate([steps - 1, count - steps]))


def _floors(ax: Axes, spectra: list[tuple[np.ndarray, float] | None]) -> None:
    """Draw the floors, one line per value: layers of equal width share theirs."""
    floors = sorted({spectrum[1] for spectrum in spectra if spectrum is not None and spectrum[1]})
    for floor in floors:
        ax.axhline(floor, color=COLOR["muted"], linewidth=0.8, linestyle=(0, (4, 3)))
    if floors:
        ax.set_ylim(floors[0] / 8, 2)
        height = ax.get_yaxis_transform()
        note = f"resolution floor {floors[-1]:.1e} σ₁"
        ax.text(0.01, floors[-1] * 1.3, note, transform=height, **NOTE)
