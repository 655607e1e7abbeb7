"""`aniso experiment`: published experiments on a model of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import click

from aniso.cli._show import progress_mode


@click.group(name="experiment", short_help="Repeat a published experiment.")
def command() -> None:
    """Repeat a published experiment on a model of your own."""


@command.command(name="sts", short_help="Sentence similarity by layer, whitening, SoftDecay.")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="STS file: tab-separated, score and two sentences in columns 5, 6, 7.",
)
@click.option("--model", help="Folder of a Hugging Face model, or a hub id. Default: MiniLM.")
@click.option(
    "--layers", multiple=True, metavar="GLOB", help="Name, glob or position; may be repeated."
)
@click.option(
    "--alpha", "alphas", multiple=True, type=float, help="α of SoftDecay; may be repeated."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for sts.json and sts.svg.")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--json", "json_lines", is_flag=True, help="Print JSON, progress as JSON lines.")
def sts(
    data: Path,
    model: str | None,
    layers: tuple[str, ...],
    alphas: tuple[float, ...],
    out: Path | None,
    batch_size: int,
    device: str,
    json_lines: bool,
) -> None:
    """Spearman correlation with people's scores by layer: plain, whitening, SoftDecay.

    Without --model the packaged all-MiniLM-L6-v2, offline.
    """
    from aniso._files import writable_folder
    from aniso.experiments import read_sts
    from aniso.experiments import sts as run
    from aniso.experiments.sts import ALPHAS
    from aniso.models import load_model, packaged_model

    pairs = read_sts(data)
    folder = None if out is None else writable_folder(out)
    loaded = load_model(model or str(packaged_model()), device=device)
    report = run(
        loaded,
        pairs,
        {"data": str(data), "model": model or "all-MiniLM-L6-v2"},
        alphas=alphas or ALPHAS,
        layers=layers or None,
        batch_size=batch_size,
        progress=progress_mode(json_lines),
    )
    paths = [] if folder is None else report.save(folder)
    if json_lines:
        click.echo(json.dumps(report.results(), allow_nan=False))
        return
    from rich.console import Console

    Console().print(report.table())
    for path in paths:
        click.echo(f"{path.name}: {path.resolve()}")
