"""The roofline plot: speed over arithmetic intensity."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from aniso.errors import InputError

if TYPE_CHECKING:
    from aniso.profile.measurement import Measurement
    from aniso.profile.report import ProfileReport

_MARKERS = {"float64": "s", "float32": "o", "bfloat16": "^", "float16": "v"}
_DASHES = {"float64": ":", "float32": "-", "bfloat16": "--", "float16": "-."}


def roofline(report: ProfileReport) -> str:
    """Measured kernels below the roofs min(read · intensity, matmul), both axes logarithmic.

    Raises:
        InputError: matplotlib is not installed, or no kernel was right.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError('plots need matplotlib; pip install "aniso[report]"') from error
    rows = [row for row in report.rows if row.timing is not None]
    if not rows:
        raise InputError("no kernel was right, so there is no speed to draw; mend them first")
    with matplotlib.rc_context({"svg.hashsalt": "aniso", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 5), layout="constrained")
        ax = figure.add_subplot()
        _roofs(ax, report, rows)
        _points(ax, rows)
        ax.set(xscale="log", yscale="log")
        ax.set_xlabel("arithmetic intensity, FLOP per byte")
        ax.set_ylabel("speed, GFLOP/s")
        ax.set_title(report.machine["name"], loc="left", fontsize=10)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def _roofs(ax: Any, report: ProfileReport, rows: list[Measurement]) -> None:
    ceilings = report.ceilings
    known = [row.intensity for row in rows] + [ceilings.ridge(name) for name in ceilings.matmul]
    reach = np.geomspace(min(known) / 2, max(known) * 2, 200)
    for dtype, peak in ceilings.matmul.items():
        roof = np.minimum(reach * ceilings.read, peak) / 1e9
        label = f"read {ceilings.read / 1e9:.0f} GB/s, matmul {dtype}"
        ax.plot(reach, roof, _DASHES.get(dtype, "-"), color="0.35", lw=1.2, label=label)


def _points(ax: Any, rows: list[Measurement]) -> None:
    import matplotlib

    shades = matplotlib.colormaps["tab10"]
    ops = list(dict.fromkeys(row.op for row in rows))
    seen: set[tuple[str, str]] = set()
    for row in rows:
        speed = (row.tflop_per_s or 0.0) * 1e3
        label = f"{row.op} {row.dtype}" if (row.op, row.dtype) not in seen else None
        seen.add((row.op, row.dtype))
        color = shades(ops.index(row.op) % 10)
        marker = _MARKERS.get(row.dtype, "o")
        ax.plot([row.intensity], [speed], marker, color=color, ms=6, alpha=0.85, label=label)
