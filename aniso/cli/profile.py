"""`aniso profile`: kernel speed against this machine's measured limits."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aniso.cli._show import terminal

if TYPE_CHECKING:
    from aniso.profile import Change, ProfileReport

_PATH = click.Path(path_type=Path)


@click.command(name="profile", short_help="Kernel speed against measured limits.")
@click.option("--op", "ops", multiple=True, metavar="GLOB", help="Op to measure; may be repeated.")
@click.option(
    "--load", type=_PATH, help="Python file whose kernels (aniso.profile.kernel) join the ops."
)
@click.option("--device", help="cpu, cuda or cuda:N. Default: a GPU where there is one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--plot", type=_PATH, metavar="FILE.svg", help="Write the roofline plot.")
@click.option(
    "--compare", "old", type=_PATH, metavar="OLD.json", help="Verdicts against an earlier --json."
)
def command(
    ops: tuple[str, ...],
    load: Path | None,
    device: str | None,
    as_json: bool,
    plot: Path | None,
    old: Path | None,
) -> int:
    """Measure every op: correctness against float64 first, then speed.

    Seconds are medians with cold caches; "of limit" is the share of this machine's read bandwidth
    or matrix-product speed, whichever the op meets first, measured in the same run (above 100 %
    where a kernel needs no product of that dtype). A wrong result has no speed, and exits with 1.
    """
    from aniso.profile import changes, profile
    from aniso.profile.verdicts import read_profile

    before = None if old is None else read_profile(old)
    if load is not None:
        _load(load)
    report = profile(ops or None, device=device or _default_device(), shown=_show_progress)
    found = () if before is None else changes(report, before)
    _print(report, found, as_json)
    if plot is not None:
        _write_plot(report, plot, as_json)
    return 0 if report.correct else 1


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _load(path: Path) -> None:
    from aniso.errors import InputError

    if not path.is_file():
        raise InputError(f"there is no file {path}; pass a Python file that registers kernels")
    runpy.run_path(str(path))


def _show_progress(name: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\033[Kprofile: {name} …\r", nl=False, err=True)


def _print(report: ProfileReport, found: tuple[Change, ...], as_json: bool) -> None:
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)
    if as_json:
        import json

        verdicts = {change.key: change for change in found}
        results = report.results()
        for entry, row in zip(results["kernels"], report.rows, strict=True):
            if row.key in verdicts:
                change = verdicts[row.key]
                entry |= {"verdict": change.verdict, "faster": change.ratio}
        click.echo(json.dumps(results, allow_nan=False))
        return
    console = terminal()
    console.print(report.headline(), highlight=False, markup=False)
    console.print(report.table(console.width, found))
    for note in report.notes:
        console.print(f"Note: {note}", highlight=False, markup=False)


def _write_plot(report: ProfileReport, plot: Path, as_json: bool) -> None:
    from aniso._files import write_atomic
    from aniso.errors import InputError

    try:
        write_atomic(plot, report.roofline().encode())
    except OSError as error:
        raise InputError(f"cannot write {plot} ({error.strerror}); choose another file") from error
    if not as_json:
        click.echo(f"roofline: {plot.resolve()}")
