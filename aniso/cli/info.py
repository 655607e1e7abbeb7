"""`aniso info`: versions, devices and backends; or what a dump holds and how long it would take."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from aniso._estimate import LayerFacts


@click.command(name="info", short_help="Versions, devices, backends and why; or a dump.")
@click.argument("dump", required=False, type=click.Path(path_type=Path), metavar="[DUMP]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(dump: Path | None, as_json: bool) -> None:
    """Show versions, devices and the backends chosen, with the reason.

    With a DUMP: its layers, widths, dtypes, rows and sizes, and the estimated time of an analysis.
    """
    if dump is not None:
        _show_dump(dump, as_json)
        return
    facts = _facts()
    if as_json:
        click.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        click.echo(f"{key:<22}{value}")


def _show_dump(path: Path, as_json: bool) -> None:
    from aniso import open_dump
    from aniso._estimate import dump_facts

    layers = dump_facts(open_dump(path))
    rows, size = sum(layer.rows for layer in layers), sum(layer.bytes for layer in layers)
    seconds = sum(layer.seconds for layer in layers)
    if as_json:
        found = {"path": str(path), "rows": rows, "bytes": size, "seconds": seconds}
        layers_found = [asdict(layer) for layer in layers]
        click.echo(json.dumps({**found, "layers": layers_found}))
        return
    width = max(len(layer.name) for layer in layers)
    for layer in layers:
        click.echo(f"{layer.name:<{width}}  {_line(layer)}")
    click.echo(f"{rows:,} rows, {_size(size)}, analysed in about {_duration(seconds)}")


def _line(layer: LayerFacts) -> str:
    ids = f", with {', '.join(layer.ids)}" if layer.ids else ""
    return (
        f"{layer.rows:,} × {layer.dim:,} {layer.dtype}, {_size(layer.bytes)}, "
        f"about {_duration(layer.seconds)}{ids}"
    )


def _size(count: int) -> str:
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _facts() -> dict[str, Any]:
    import platform
    from importlib.metadata import version

    import torch

    from aniso import _native

    facts: dict[str, Any] = {
        "aniso": version("aniso"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu kernels": _native.isa,
        "cuda kernels": "compiled in" if _native.has_cuda else "not in this build",
    }
    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    for device in devices:
        name = torch.cuda.get_device_name(device) if device != "cpu" else platform.processor()
        facts[device] = name or platform.machine()
        facts |= _backends(device)
    return facts


def _backends(device: str) -> dict[str, str]:
    import torch

    from aniso.ops import select_backend

    x = torch.empty(0, 1, device=device)
    chosen = {op: select_backend(op, x) for op in ("row_moments", "gram", "cross_gram")}
    return {f"{op} on {device}": f"{b.name} ({b.reason})" for op, b in chosen.items()}
