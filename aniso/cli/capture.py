"""`aniso capture`: metrics of a model while it runs over texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from aniso.cli._show import progress_mode, show_report

_DTYPES = ("auto", "float32", "bfloat16", "float16")


@click.command(name="capture", short_help="Analyse a model while it runs.")
@click.option("--model", required=True, help="Folder of a Hugging Face model, or a hub id.")
@click.option(
    "--text",
    required=True,
    type=click.Path(path_type=Path),
    help="UTF-8 file, one text per line.",
)
@click.option(
    "--layers", multiple=True, metavar="GLOB", help="Name, glob or position; may be repeated."
)
@click.option(
    "--sites",
    default="residual",
    show_default=True,
    help="What to read of every layer: residual, attention, mlp, queries, keys; several by commas.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for results.json, report.html and the states.",
)
@click.option("--save", type=click.Path(path_type=Path), help="Folder to write the rows to.")
@click.option(
    "--soft-decay",
    multiple=True,
    metavar="LAYER=ALPHA",
    help="Apply SoftDecay to a layer of the running model, such as 5=-0.6; may be repeated.",
)
@click.option("--exclude-special-tokens", is_flag=True, help="Leave out [CLS], [SEP] and the like.")
@click.option(
    "--exclude-token-id", multiple=True, type=int, help="Leave out a token id; may be repeated."
)
@click.option(
    "--max-norm-multiple",
    type=float,
    metavar="K",
    help="Leave out rows whose norm is over K times the median of their layer and batch.",
)
@click.option(
    "--groups",
    type=click.Choice(["token_ids", "sentence", "position"]),
    help="Mean cosine within and between groups of rows as well.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="What the states may take, such as 4GiB: Grams if they fit, else sketches or moments.",
)
@click.option("--no-gram", is_flag=True, help="First-order statistics only: faster, no spectra.")
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(min=1))
@click.option("--max-length", default=512, show_default=True, type=click.IntRange(min=1))
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--dtype", default="auto", show_default=True, type=click.Choice(_DTYPES))
@click.option("--json", "json_lines", is_flag=True, help="Print JSON, progress as JSON lines.")
def command(
    model: str,
    text: Path,
    layers: tuple[str, ...],
    sites: str,
    out: Path | None,
    save: Path | None,
    soft_decay: tuple[str, ...],
    exclude_special_tokens: bool,
    exclude_token_id: tuple[int, ...],
    max_norm_multiple: float | None,
    groups: Any,
    memory: str | None,
    no_gram: bool,
    batch_size: int,
    max_length: int,
    device: str,
    dtype: str,
    json_lines: bool,
) -> None:
    """Run a model over texts and analyse the hidden states of its layers."""
    import torch

    from aniso._capture_run import capture_texts
    from aniso.models import CaptureOptions, load_model, read_texts

    texts = read_texts(text)
    chosen = None if dtype == "auto" else getattr(torch, dtype)
    loaded = load_model(model, device=device, dtype=chosen, max_length=max_length)
    options = CaptureOptions(
        layers=layers or None,
        sites=[site.strip() for site in sites.split(",")],
        exclude_special_tokens=exclude_special_tokens,
        exclude_token_ids=exclude_token_id,
        max_norm_multiple=max_norm_multiple,
        gram=not no_gram,
        groups=groups,
        memory=memory,
    )
    report = capture_texts(
        loaded,
        texts,
        {"model": model, "text": str(text)},
        options,
        out=out,
        save=save,
        soft_decay=dict(_layer_alpha(item) for item in soft_decay),
        batch_size=batch_size,
        progress=progress_mode(json_lines),
        announce=_announce_json if json_lines else _announce,
    )
    show_report(report, out, json_lines)


def _announce(memory: str) -> None:
    click.echo(f"memory: {memory}", err=True)


def _announce_json(memory: str) -> None:
    click.echo(json.dumps({"memory": memory}), err=True)


def _layer_alpha(item: str) -> tuple[str, float]:
    layer, _, alpha = item.rpartition("=")
    try:
        if layer:
            return layer, float(alpha)
    except ValueError:
        pass
    sentence = f"{item!r} is not LAYER=ALPHA, such as 5=-0.6"
    raise click.BadParameter(sentence, param_hint="--soft-decay")
