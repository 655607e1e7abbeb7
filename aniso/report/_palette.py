"""The page's colours, light and dark, as CSS variables."""

from __future__ import annotations

import numpy as np

from aniso.report._svg import STEPS

LIGHT = {
    "ink": "#1b1d21",
    "muted": "#6b7079",
    "rule": "#e4e5e8",
    "c1": "#1f5fa8",
    "c2": "#c2410c",
    "c3": "#0f7a6c",
}
DARK = {
    "ink": "#e8e9ec",
    "muted": "#9aa0aa",
    "rule": "#2e3138",
    "c1": "#6cb0ff",
    "c2": "#ff9d66",
    "c3": "#4fd1bd",
}
HEAT_LIGHT = ("#f4f2f0", "#f0a06a", "#c2410c", "#551a04")
HEAT_DARK = ("#22252b", "#7a3a1a", "#ff9d66", "#fff0e4")


def variables(dark: bool) -> str:
    """Return the CSS declarations of every colour that a figure names."""
    roles = DARK if dark else LIGHT
    # Early layers recede and late ones stand out, on paper of either colour.
    depth = _ramp("viridis", 0.3, 1.0) if dark else _ramp("viridis", 0.86, 0.0)
    heat = _blend(*(HEAT_DARK if dark else HEAT_LIGHT))
    named = [f"--{role}:{color}" for role, color in roles.items()]
    named += [f"--depth-{step}:{color}" for step, color in enumerate(depth)]
    named += [f"--heat-{step}:{color}" for step, color in enumerate(heat)]
    return ";".join(named)


def _ramp(name: str, first: float, last: float) -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps[name](value)) for value in np.linspace(first, last, STEPS)]


def _blend(*anchors: str) -> list[str]:
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    colors = LinearSegmentedColormap.from_list("heat", anchors)
    return [to_hex(colors(value)) for value in np.linspace(0, 1, STEPS)]
