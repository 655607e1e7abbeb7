"""The distribution of the cosine by layer: heat map, table of quantiles, JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from aniso.report._plain import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from aniso.metrics import CosineHistogram

QUANTILES = (0.05, 0.5, 0.95)
_SCALARS = ("min", "max", "pairs", "exact", "rows", "sampled_rows", "zero_rows", "confidence")
# A cell of the map is at least this share of the range of cosines: more are not told apart.
_CELLS = 48


def distribution_entry(found: CosineHistogram) -> dict[str, Any]:
    """Return the distribution in JSON types: counts of equal bins over [−1, 1], and the rest."""
    entry = {key: plain(getattr(found, key)) for key in _SCALARS}
    return {**entry, "counts": plain(found.counts)}


def distribution_of(entry: Mapping[str, Any]) -> CosineHistogram:
    """Return the distribution that `distribution_entry` wrote; KeyError where a part is missing."""
    from aniso.metrics import CosineHistogram

    counts = np.asarray(entry["counts"], dtype=np.int64)
    edges = np.linspace(-1.0, 1.0, len(counts) + 1)
    return CosineHistogram(counts, edges, **{key: entry[key] for key in _SCALARS})


def quantile_rows(
    found: Mapping[str, CosineHistogram], layers: Sequence[str]
) -> list[tuple[str, list[str]]]:
    """Return a line per layer: least, quantiles with intervals, largest, rows and pairs."""
    return [(name, _cells(found[name])) for name in layers if name in found]


def basis(found: Mapping[str, CosineHistogram]) -> str:
    """Return of which pairs the distributions are: all, or those of a sample, with confidence."""
    sampled = [one for one in found.values() if not one.exact]
    if not sampled:
        return "exact: all pairs of every layer, counted in bins"
    rows = sorted({one.sampled_rows for one in sampled})
    many = f"{rows[0]:,}" if len(rows) == 1 else f"{rows[0]:,} to {rows[-1]:,}"
    return (
        f"sampled: all pairs of {many} rows drawn uniformly from each layer; brackets hold the "
        f"quantile of all pairs with {sampled[0].confidence:.0%} confidence, least and largest are "
        "the sample's"
    )


def _cells(one: CosineHistogram) -> list[str]:
    cells = [f"{one.min:z.3f}"]
    for q in QUANTILES:
        low, high = one.interval(q)
        cells.append(f"{one.quantile(q):z.3f} [{low:z.3f}, {high:z.3f}]")
    share = "all" if one.exact else f"{one.sampled_rows:,}"
    return [*cells, f"{one.max:z.3f}", f"{share} of {one.rows:,}" if share != "all" else share]


def draw_distribution(found: Mapping[str, CosineHistogram], layers: Sequence[str]) -> Figure | None:
    """Draw the share of pairs at every cosine as a heat map over layers, with three quantiles."""
    from matplotlib.colors import ListedColormap

    from aniso.report._axes import KEY, layer_axis, new_figure
    from aniso.report._svg import COLOR, HEAT

    if not any(name in found and found[name].pairs for name in layers):
        return None
    edges, shares = _shares(found, layers)
    figure = new_figure()
    ax = figure.add_subplot()
    places = np.arange(len(layers) + 1) - 0.5
    cells = np.ma.masked_less(shares.T, 1e-3 * np.nanmax(shares))
    top = float(cells.max())
    mesh = ax.pcolormesh(
        places, edges, cells, cmap=ListedColormap(HEAT), vmin=0, vmax=top, edgecolors="none"
    )
    mark = "o" if len(layers) <= 24 else None
    for q, style, label in ((0.05, ":", "5%"), (0.5, "-", "median"), (0.95, "--", "95%")):
        line = [found[name].quantile(q) if name in found else np.nan for name in layers]
        ax.plot(line, style, color=COLOR["c1"], linewidth=1.3, marker=mark, markersize=2.2)
        ax.lines[-1].set_label(label)
    ax.set_ylabel("cosine of two rows")
    ax.set_ylim(edges[0], edges[-1])
    ax.grid(visible=False)
    ax.legend(ncols=3, **KEY)
    layer_axis(ax, list(layers))
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.015, aspect=18, ticks=[0, top])
    bar.ax.set_yticklabels(["0", f"{top:.0%}"])
    bar.set_label("share of pairs per cell", fontsize=8.5)
    bar.outline.set_visible(False)
    return figure


def _shares(
    found: Mapping[str, CosineHistogram], layers: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return edges of cells over the cosines that occur, and each layer's share of pairs there."""
    present = [found[name] for name in layers if name in found]
    used = np.nonzero(np.sum([one.counts for one in present], axis=0))[0]
    first, last = int(used[0]), int(used[-1]) + 1
    step = -(-(last - first) // _CELLS)
    starts = np.arange(first, last, step)
    shares = np.full((len(layers), len(starts)), np.nan)
    for row, name in zip(shares, layers, strict=True):
        if name in found and found[name].pairs:
            counts = np.asarray(found[name].counts)[:last]
            row[:] = np.add.reduceat(counts, starts) / found[name].pairs
    return np.asarray(present[0].edges)[np.append(starts, last)], shares
