"""`aniso info`: versions, devices, and which implementation every op would choose."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command(name="info", short_help="Versions, devices, backends and why.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Show versions, devices and the backends chosen, with the reason."""
    facts = _facts()
    if as_json:
        click.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        click.echo(f"{key:<22}{value}")


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
