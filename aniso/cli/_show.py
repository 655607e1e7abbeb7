"""What several commands print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

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
    show_lines(console, report.table(console.width), report.trends(console.width))
    show_lines(console, report.summary(), *(f"Note: {note}" for note in report.notes))
    if folder is not None:
        show_files(folder, ("report.html", "results.json"))


def show_lines(console: Console, *parts: Any) -> None:
    """Prints tables and sentences, one under the other; what is empty is left out."""
    for part in parts:
        if part:
            console.print(part, highlight=False, markup=False)


def show_files(folder: Path, names: Sequence[str]) -> None:
    """Prints where the files are, and what to install for the page that is not."""
    from aniso.report import Report

    for name in names:
        if (folder / name).exists():
            click.echo(f"{name}: {(folder / name).resolve()}")
    missing = Report.missing_extra()
    if missing is not None:
        click.echo(missing, err=True)
