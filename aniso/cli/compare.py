"""`aniso compare`: two dumps, results or states side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click

from aniso.cli._show import progress_mode


@click.command(name="compare", short_help="Compare two dumps, results or states.")
@click.argument("a", type=click.Path(path_type=Path), metavar="A")
@click.argument("b", type=click.Path(path_type=Path), metavar="B")
@click.option(
    "--layers", multiple=True, metavar="GLOB", help="Name, glob or position; may be repeated."
)
@click.option("--json", "json_lines", is_flag=True, help="Print JSON, progress as JSON lines.")
def command(a: Path, b: Path, layers: tuple[str, ...], json_lines: bool) -> None:
    """Compare A and B, layer by layer: the change of every metric, B less A.

    Each is a dump of activations, a folder that analyze or capture wrote, or one state file. Two
    dumps of the same tokens also give RSA-Pearson and debiased CKA.
    """
    from aniso._compare_sources import compare_sources

    report = compare_sources(a, b, layers=layers or None, progress=progress_mode(json_lines))
    if json_lines:
        click.echo(json.dumps(report.results(), allow_nan=False))
        return
    from rich.console import Console

    console = Console()
    console.print(report.table(console.width))
    for note in report.notes:
        console.print(f"Note: {note}", highlight=False, markup=False)
