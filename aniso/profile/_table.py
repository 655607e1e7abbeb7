"""The terminal table of a profile."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from aniso.profile.measurement import Measurement
    from aniso.profile.report import ProfileReport
    from aniso.profile.verdicts import Change

# Heading, and how soon it gives way where the terminal is narrow (0: never).
_RANKS = {
    "op": 0,
    "backend": 1,
    "dtype": 0,
    "shape": 0,
    "median": 0,
    "p20–p80": 7,
    "GB/s": 3,
    "TFLOP/s": 4,
    "FLOP/B": 8,
    "of limit": 2,
    "bound": 5,
    "× torch": 2,
    "error": 6,
    "verdict": 0,
}
_GAP = 2
_STYLES = {"SLOW": "red", "FAST": "green", "NOISY": "yellow", "SAME": "dim"}
_LEFT = ("op", "backend", "dtype", "shape", "bound", "verdict")
_DTYPES = {"float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def profile_table(report: ProfileReport, width: int, changes: tuple[Change, ...]) -> Table:
    """A table at most `width` columns wide: the least telling columns give way."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = _fitting([_cells(row, report, changes) for row in report.rows], width)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for heading in cells[0] if cells else ():
        table.add_column(heading, justify="left" if heading in _LEFT else "right", no_wrap=True)
    for row in cells:
        table.add_row(*(Text(cell, style=_style(cell)) for cell in row.values()))
    return table


def _cells(row: Measurement, report: ProfileReport, changes: tuple[Change, ...]) -> dict[str, str]:
    verdicts = {change.key: f"{change.verdict} {change.ratio:.2f}" for change in changes}
    cells = {
        "op": row.op,
        "backend": row.backend,
        "dtype": _DTYPES.get(row.dtype, row.dtype),
        "shape": row.shape,
        **dict.fromkeys(list(_RANKS)[4:-1], ""),
        "FLOP/B": f"{row.intensity:.3g}",
        "error": f"{row.error:.0e}",
    }
    cells |= _speed(row, report)
    return cells | {"verdict": verdicts.get(row.key, "")} if changes else cells


def _speed(row: Measurement, report: ProfileReport) -> dict[str, str]:
    timing, share = row.timing, row.share(report.ceilings)
    if timing is None or share is None:
        return {"median": "WRONG"}
    return {
        "median": duration(timing.median),
        "p20–p80": f"{duration(timing.p20)}–{duration(timing.p80)}",
        "GB/s": f"{row.gb_per_s:.3g}",
        "TFLOP/s": f"{row.tflop_per_s:.2g}",
        "of limit": f"{share:.0%}",
        "bound": row.bound(report.ceilings) or "",
        "× torch": "" if row.speedup is None else f"{row.speedup:.2g}",
    }


def duration(seconds: float) -> str:
    """Seconds with three digits and the unit that fits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _fitting(rows: list[dict[str, str]], width: int) -> list[dict[str, str]]:
    if not rows:
        return rows
    kept = list(rows[0])
    for heading in sorted(kept, key=lambda heading: -_RANKS[heading]):
        taken = sum(_outer(heading, rows) for heading in kept)
        if taken > width and _RANKS[heading]:
            kept.remove(heading)
    return [{heading: row[heading] for heading in kept} for row in rows]


def _outer(heading: str, rows: list[dict[str, str]]) -> int:
    """The characters that a column takes, its gap included."""
    return max(len(heading), *(len(row[heading]) for row in rows)) + _GAP


def _style(cell: str) -> str:
    return "bold red" if cell == "WRONG" else _STYLES.get(cell.split(" ")[0], "")
