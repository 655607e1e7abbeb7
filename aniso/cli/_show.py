"""What several commands print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from aniso.progress import ProgressMode
    from aniso.report import Report


def progress_mode(json_lines: bool) -> ProgressMode:
    """The progress that belongs to the output form."""
    return "json" if json_lines else True


def show_report(report: Report, folder: Path | None, json_lines: bool) -> None:
    """Prints the table, or the results as one JSON line, and where the files are."""
    if json_lines:
        click.echo(json.dumps(report.results(), allow_nan=False))
        return
    from rich.console import Console

    console = Console()
    console.print(report.table(console.width))
    if report.summary():
        console.print(report.summary(), highlight=False, markup=False)
    for note in report.notes:
        console.print(f"Note: {note}", highlight=False, markup=False)
    if folder is None:
        return
    for name in ("report.html", "results.json"):
        if (folder / name).exists():
            click.echo(f"{name}: {(folder / name).resolve()}")
    missing = report.missing_extra()
    if missing is not None:
        click.echo(missing, err=True)
