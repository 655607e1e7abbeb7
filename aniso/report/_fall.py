"""How fast a spectrum falls, and where its resolution ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from aniso.report._plain import EMPTY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aniso.metrics import LayerMetrics

ENERGIES = (0.5, 0.9, 0.99)


def fall_rows(layers: Mapping[str, LayerMetrics]) -> list[tuple[str, list[str]]]:
    """Return a line per layer with a spectrum: directions for each share of energy, floor, rest."""
    found = []
    for name, layer in layers.items():
        if (sigma := spectrum_of(layer)) is not None:
            relative = (layer.resolution_floor or 0.0) / sigma[0]
            cells = [f"{k:,}" for k in directions(sigma)]
            last = sigma[-1] / sigma[0]
            cells += [f"{last:.1e}" if last > relative else f"< {relative:.1e}"]
            cells += [f"{relative:.1e}" if relative else EMPTY]
            found.append((name, [*cells, f"{_above(layer, sigma):,} of {len(sigma):,}"]))
    return found


def fall_sentence(name: str, layer: LayerMetrics) -> str:
    """Return how fast the spectrum of one layer falls and where its resolution ends."""
    if (sigma := spectrum_of(layer)) is None:
        return ""
    half, most, _ = directions(sigma)
    first = sigma[0] ** 2 / np.square(sigma).sum()
    above, ends = _above(layer, sigma), ""
    if layer.resolution_floor:
        floor = layer.resolution_floor / sigma[0]
        ends = (
            f"; {above:,} of {len(sigma):,} singular values lie above the resolution floor of "
            f"{floor:.1e} σ₁, under which a value may be rounding"
        )
    return (
        f"In {name} the first singular direction holds {first:.0%} of the energy; half of it is in "
        f"{half:,} and 90% in {most:,} of {layer.dim:,} directions{ends}."
    )


def unresolved_sentence(layers: Mapping[str, LayerMetrics], name: str) -> str:
    """Return which layers besides `name` have singular values under the resolution floor."""
    found = [(other, under) for other, under in unresolved(layers).items() if other != name]
    if not found:
        return ""
    other, under = max(found, key=lambda one: one[1])
    more = f" and {len(found) - 1:,} other layers have some" if len(found) > 1 else ""
    return f" {other} has {under:,} under its floor{more}."


def unresolved(layers: Mapping[str, LayerMetrics]) -> dict[str, int]:
    """Return how many singular values lie under the resolution floor, of layers that have such."""
    found = {}
    for name, layer in layers.items():
        sigma = spectrum_of(layer)
        under = 0 if sigma is None else len(sigma) - _above(layer, sigma)
        if under:
            found[name] = under
    return found


def directions(sigma: np.ndarray) -> list[int]:
    """Return the fewest singular directions that hold each share of `ENERGIES` of Σσ²."""
    energy = np.square(sigma / sigma[0]).cumsum()
    return [int(np.searchsorted(energy, share * energy[-1])) + 1 for share in ENERGIES]


def spectrum_of(layer: LayerMetrics) -> np.ndarray | None:
    """Return the singular values; None where there are none, or none but zeros."""
    values = layer.singular_values
    if values is None or not len(values) or not np.isfinite(values[0]) or values[0] <= 0:
        return None
    return np.asarray(values, dtype=float)


def _above(layer: LayerMetrics, sigma: np.ndarray) -> int:
    return int((sigma > (layer.resolution_floor or 0.0)).sum())
