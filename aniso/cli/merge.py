"""`aniso merge`: states of parts of the rows into the state of all of them."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="merge", short_help="Merge saved states of one layer.")
@click.argument(
    "states", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="STATE…"
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write.")
def command(states: tuple[Path, ...], out: Path) -> None:
    """Merge STATEs (*.state.safetensors) of one layer; rows that two of them hold are refused."""
    from aniso._merge import merge_states

    click.echo(f"{out}: {merge_states(states, out)!r}")
