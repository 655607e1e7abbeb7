"""`aniso experiment`: published experiments on a model of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from aniso.cli._show import progress_mode, terminal


@click.group(name="experiment", short_help="Repeat a published experiment.")
def command() -> None:
    """Repeat a published experiment on a model of your own."""


_SAMPLE = Path(__file__).with_name("demo_text.txt")
_PACKAGED = "all-MiniLM-L6-v2"
_OUT = click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for the numbers (JSON) and plot (SVG)."
)
_LAYERS = click.option(
    "--layers", multiple=True, metavar="GLOB", help="Name, glob or position; may be repeated."
)
_BATCH_SIZE = click.option(
    "--batch-size", default=64, show_default=True, type=click.IntRange(min=1)
)
_DEVICE = click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
_JSON = click.option(
    "--json", "json_lines", is_flag=True, help="Print JSON, progress as JSON lines."
)
_MODELS = click.option(
    "--model",
    "models",
    multiple=True,
    help="Folder of a Hugging Face model, or a hub id; may be repeated. Default: MiniLM.",
)
_TEXT = click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="UTF-8 file, one text per line. Default: sample sentences.",
)


@command.command(name="sts", short_help="Sentence similarity by layer, whitening, SoftDecay.")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="STS file: tab-separated, score and two sentences in columns 5, 6, 7.",
)
@click.option("--model", help="Folder of a Hugging Face model, or a hub id. Default: MiniLM.")
@_LAYERS
@click.option(
    "--alpha", "alphas", multiple=True, type=float, help="α of SoftDecay; may be repeated."
)
@_OUT
@_BATCH_SIZE
@_DEVICE
@_JSON
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
    from aniso.models import load_model

    pairs = read_sts(data)
    folder = None if out is None else writable_folder(out)
    loaded = load_model(_path(model), device=device)
    report = run(
        loaded,
        pairs,
        {"data": str(data), "model": model or _PACKAGED},
        alphas=alphas or ALPHAS,
        layers=layers or None,
        batch_size=batch_size,
        progress=progress_mode(json_lines),
    )
    _show(report, folder, json_lines)


@command.command(name="untrained-block", short_help="A bias on the input of a random block.")
@click.option(
    "--bias-norm", "bias_norms", multiple=True, type=float, help="Norm N; may be repeated."
)
@click.option("--dim", default=768, show_default=True, help="Width of the block.")
@click.option("--heads", default=12, show_default=True, help="Heads of its attention.")
@click.option("--sequences", default=16, show_default=True, help="Sequences of random tokens.")
@click.option("--tokens", default=512, show_default=True, help="Tokens of each.")
@click.option("--seed", default=0, show_default=True, help="Of all random numbers.")
@_OUT
@_JSON
def untrained_block(
    bias_norms: tuple[float, ...],
    dim: int,
    heads: int,
    sequences: int,
    tokens: int,
    seed: int,
    out: Path | None,
    json_lines: bool,
) -> None:
    """How a bias common to all tokens makes an untrained block's states and attention look.

    Norms and mean cosine before and behind the block, logits, extremes of the softmax, as the norm
    N of the bias grows; N* is where the norms cross.
    """
    from aniso._files import writable_folder
    from aniso.experiments import BIAS_NORMS, BlockSize
    from aniso.experiments import untrained_block as run

    folder = None if out is None else writable_folder(out)
    size = BlockSize(dim=dim, heads=heads, sequences=sequences, tokens=tokens)
    shown = progress_mode(json_lines)
    _show(run(bias_norms or BIAS_NORMS, size=size, seed=seed, progress=shown), folder, json_lines)


@command.command(name="token-uniformity", short_help="Spectra of sequences, before and after.")
@click.option("--model", help="Folder of a Hugging Face model, or a hub id. Default: MiniLM.")
@_TEXT
@_LAYERS
@click.option("--alpha", default=-0.6, show_default=True, help="α of SoftDecay.")
@click.option(
    "--mode", default="paper", show_default=True, type=click.Choice(["paper", "continuous"])
)
@_OUT
@_BATCH_SIZE
@_DEVICE
@_JSON
def token_uniformity(
    model: str | None,
    text: Path | None,
    layers: tuple[str, ...],
    alpha: float,
    mode: str,
    out: Path | None,
    batch_size: int,
    device: str,
    json_lines: bool,
) -> None:
    """Distributions of every sequence's singular values by layer, before and after SoftDecay."""
    from aniso._files import writable_folder
    from aniso.experiments import token_uniformity as run
    from aniso.models import load_model, read_texts

    texts = read_texts(text or _SAMPLE)
    folder = None if out is None else writable_folder(out)
    report = run(
        load_model(_path(model), device=device),
        texts,
        {"model": model or _PACKAGED, "text": str(text or "sample sentences of aniso")},
        alpha=alpha,
        mode=mode,
        layers=layers or None,
        batch_size=batch_size,
        progress=progress_mode(json_lines),
    )
    _show(report, folder, json_lines)


@command.command(name="query-key", short_help="Drift of queries and keys, head by head.")
@_MODELS
@_TEXT
@_LAYERS
@_OUT
@_BATCH_SIZE
@_DEVICE
@_JSON
def query_key(
    models: tuple[str, ...],
    text: Path | None,
    layers: tuple[str, ...],
    out: Path | None,
    batch_size: int,
    device: str,
    json_lines: bool,
) -> None:
    """Drift of queries and keys, their cosine, mean and variance of the logits, head by head.

    --layers chooses attention modules.
    """
    from aniso._files import writable_folder
    from aniso.experiments import query_key as run
    from aniso.models import load_model, read_texts

    texts = read_texts(text or _SAMPLE)
    folder = None if out is None else writable_folder(out)
    report = run(
        {model or _PACKAGED: load_model(_path(model), device=device) for model in models or [None]},
        texts,
        {"text": str(text or "sample sentences of aniso")},
        layers=layers or None,
        batch_size=batch_size,
        progress=progress_mode(json_lines),
    )
    _show(report, folder, json_lines)


@command.command(name="layers", short_help="Mean cosine and drift by layer, several models.")
@_MODELS
@_TEXT
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    help="In place of --text: safetensors file of pixel_values, input_values or other inputs.",
)
@_LAYERS
@_OUT
@_BATCH_SIZE
@_DEVICE
@_JSON
def layers(
    models: tuple[str, ...],
    text: Path | None,
    inputs: Path | None,
    layers: tuple[str, ...],
    out: Path | None,
    batch_size: int,
    device: str,
    json_lines: bool,
) -> None:
    """Mean cosine and drift by layer for several models, on text, images or audio."""
    from aniso._files import writable_folder
    from aniso.experiments import layers as run
    from aniso.models import load_model, load_network, read_inputs, read_texts

    if text is not None and inputs is not None:
        raise click.UsageError("both --text and --inputs were given; pass one of them")
    given = read_texts(text or _SAMPLE) if inputs is None else read_inputs(inputs)
    folder = None if out is None else writable_folder(out)
    load = load_model if inputs is None else load_network
    report = run(
        {model or _PACKAGED: load(_path(model), device=device) for model in models or [None]},
        given,
        {"inputs": str(inputs or text or "sample sentences of aniso")},
        layers=layers or None,
        batch_size=batch_size,
        progress=progress_mode(json_lines),
    )
    _show(report, folder, json_lines)


def _path(model: str | None) -> str:
    """Where a model is: the packaged one where none is named."""
    from aniso.models import packaged_model

    return model or str(packaged_model())


def _show(report: Any, folder: Path | None, json_lines: bool) -> None:
    """Saves a report where a folder is given, and prints it."""
    paths = [] if folder is None else report.save(folder)
    if json_lines:
        click.echo(json.dumps(report.results(), allow_nan=False))
        return
    terminal().print(report.table())
    for path in paths:
        click.echo(f"{path.name}: {path.resolve()}")
