"""`aniso demo`: the main job on a real model and real text, offline."""

from __future__ import annotations

import os
from pathlib import Path

import click

from aniso.cli._show import progress_mode, show_report

_TEXT = Path(__file__).with_name("demo_text.txt")


@click.command(name="demo", short_help="Try it on a real model, offline.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("aniso-report"),
    show_default=True,
    help="Folder for results.json, report.html and the states.",
)
@click.option("--json", "json_lines", is_flag=True, help="Print JSON, progress as JSON lines.")
def command(out: Path, json_lines: bool) -> None:
    """Capture a sentence encoder on sample text, analyse it, write the report."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from aniso._capture_run import capture_texts
    from aniso.models import CaptureOptions, load_model, packaged_model, read_texts

    loaded = load_model(str(packaged_model()))
    report = capture_texts(
        loaded,
        read_texts(_TEXT),
        {"model": "all-MiniLM-L6-v2", "text": "sample sentences of aniso"},
        CaptureOptions(groups="token_ids"),
        out=out,
        progress=progress_mode(json_lines),
    )
    show_report(report, out, json_lines)
