"""`aniso analyze`: metrics of a dump."""

from __future__ import annotations

import os
from pathlib import Path

import click

from aniso.cli._show import progress_mode, show_report


@click.command(name="analyze", short_help="Analyse dumps of activations.")
@click.argument("dumps", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DUMP…")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for results.json, report.html and the states.",
)
@click.option(
    "--layers", multiple=True, metavar="GLOB", help="Name, glob or position; may be repeated."
)
@click.option("--no-gram", is_flag=True, help="First-order statistics only: faster, no spectra.")
@click.option("--strict", is_flag=True, help="Stop at the first row with NaN or infinite values.")
@click.option("--resume/--no-resume", default=True, help="Go on from the states in --out.")
@click.option(
    "--deterministic", is_flag=True, help="One thread per process, also for torch's own products."
)
@click.option("--json", "json_lines", is_flag=True, help="Print JSON, progress as JSON lines.")
def command(
    dumps: tuple[Path, ...],
    out: Path | None,
    layers: tuple[str, ...],
    no_gram: bool,
    strict: bool,
    resume: bool,
    deterministic: bool,
    json_lines: bool,
) -> None:
    """Analyse activation DUMPs (files or folders; `aniso info DUMP` shows what one holds).

    torchrun --nproc-per-node N -m aniso analyze … shares the blocks over N processes.
    """
    from aniso._analyze import analyze

    report = analyze(
        dumps,
        out=out,
        layers=layers or None,
        gram=not no_gram,
        strict=strict,
        resume=resume,
        deterministic=deterministic,
        progress=progress_mode(json_lines),
    )
    if os.environ.get("RANK", "0") == "0":
        show_report(report, out, json_lines)
