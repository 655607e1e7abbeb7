"""`aniso compare`: two dumps, results or states side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aniso.cli._show import progress_mode, show_files, show_lines, terminal

if TYPE_CHECKING:
    from aniso.report import ComparisonReport


@click.command(name="compare", short_help="Compare two dumps, results or states.")
@click.argument("a", type=click.Path(path_type=Path), metavar="A")
@click.argument("b", type=click.Path(path_type=Path), metavar="B")
@click.option(
    "--layers", multiple=True, metavar="GLOB", help="Name, glob or position; may be repeated."
)
@click.option(
    "--fail-if",
    multiple=True,
    metavar="CONDITION",
    help="Exit with 1 where it holds of a layer: METRIC.increase>X (B less A), .decrease>X (A less "
    "B), .change>X (either way); rsa_pearson<X, debiased_cka<X. May be repeated.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for comparison.html and comparison.json.",
)
@click.option("--json", "json_lines", is_flag=True, help="Print JSON, progress as JSON lines.")
def command(
    a: Path,
    b: Path,
    layers: tuple[str, ...],
    fail_if: tuple[str, ...],
    out: Path | None,
    json_lines: bool,
) -> int:
    """Compare A and B, layer by layer: the change of every metric, B less A.

    Each is a dump of activations, a folder that analyze or capture wrote, or one state file. Two
    dumps of the same tokens also give RSA-Pearson and debiased CKA.
    """
    from aniso._compare_sources import compare_sources
    from aniso._files import writable_folder
    from aniso.report import Condition, failures

    conditions = [Condition.parse(text) for text in fail_if]
    report = compare_sources(a, b, layers=layers or None, progress=progress_mode(json_lines))
    failed = failures(report, conditions)
    if out is not None:
        report.save(writable_folder(out))
    _print(report, out, json_lines)
    for sentence in failed:
        click.echo(f"aniso: {sentence}", err=True)
    return 1 if failed else 0


def _print(report: ComparisonReport, out: Path | None, json_lines: bool) -> None:
    if json_lines:
        click.echo(json.dumps(report.results(), allow_nan=False))
        return
    console = terminal()
    show_lines(console, report.table(console.width), *(f"Note: {note}" for note in report.notes))
    if out is not None:
        show_files(out, ("comparison.html", "comparison.json"))
