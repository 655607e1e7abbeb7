"""`aniso report`: the report of saved states, again or in another form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import click

from aniso.cli._show import show_report

if TYPE_CHECKING:
    from aniso.metrics import CosineHistogram
    from aniso.report import Report


@click.command(name="report", short_help="The report of saved states; Markdown, CSV.")
@click.argument(
    "states", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="STATE…"
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for results.json and report.html."
)
@click.option("--markdown", "form", flag_value="markdown", help="Print a model-card section.")
@click.option("--csv", "form", flag_value="csv", help="Print a CSV table, full precision.")
@click.option("--json", "form", flag_value="json", help="Print JSON.")
def command(states: tuple[Path, ...], out: Path | None, form: str | None) -> None:
    """Report on STATEs: *.state.safetensors files, or folders that analyze or capture wrote."""
    from aniso._files import writable_folder

    report = _report(states)
    if out is not None:
        report.save(writable_folder(out))
    if form == "markdown":
        click.echo(report.to_markdown(), nl=False)
    elif form == "csv":
        click.echo(report.to_csv(), nl=False)
    else:
        show_report(report, out, form == "json")


def _report(states: tuple[Path, ...]) -> Report:
    from aniso.errors import InputError
    from aniso.report import Report
    from aniso.state import LayerState

    files: dict[str, Path] = {}
    provenance: dict[str, Any] = {}
    drawn: dict[str, CosineHistogram] = {}
    for path in states:
        found, more, distributions = _states_of(path)
        for name, file in found.items():
            if name in files:
                raise InputError(
                    f"layer {name} is in {files[name]} and in {file}; report on one of them"
                )
            files[name] = file
        provenance |= more
        drawn |= distributions
    loaded = {name: LayerState.load(file) for name, file in files.items()}
    layers = {name: state.compute() for name, state in loaded.items()}
    groups = {name: state.group_cosine() for name, state in loaded.items() if state.groups}
    provenance = provenance or {"sources": [str(path) for path in states]}
    return Report(layers, provenance, distributions=drawn, groups=groups)


def _states_of(
    path: Path,
) -> tuple[dict[str, Path], dict[str, Any], dict[str, CosineHistogram]]:
    """Layer to state file in order of execution, where they came from, their distributions."""
    from aniso._names import natural_key
    from aniso.errors import InputError
    from aniso.state import STATE_SUFFIX, is_state

    def name_of(file: Path) -> str:
        return unquote(file.name.removesuffix(STATE_SUFFIX))

    if path.is_file() and is_state(path):
        return {name_of(path): path}, {}, {}
    listed = [file for file in path.iterdir() if is_state(file)] if path.is_dir() else []
    if not listed:
        raise InputError(
            f"{path} is no state and no folder with any; pass *{STATE_SUFFIX} files, or the --out "
            "folder of aniso analyze"
        )
    found = {name_of(file): file for file in listed}
    order, provenance, drawn = _results(path / "results.json")
    known = [name for name in order if name in found]
    names = dict.fromkeys([*known, *sorted(found, key=natural_key)])
    drawn = {name: one for name, one in drawn.items() if name in found}
    return {name: found[name] for name in names}, provenance, drawn


def _results(path: Path) -> tuple[list[str], dict[str, Any], dict[str, CosineHistogram]]:
    """Layers in order, provenance, distributions: as an analysis left them beside its states."""
    from aniso.errors import InputError
    from aniso.report import distribution_of

    if not path.exists():
        return [], {}, {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        layers = {str(layer["name"]): layer for layer in results["layers"]}
        drawn = {
            name: distribution_of(layer["cosine_distribution"])
            for name, layer in layers.items()
            if "cosine_distribution" in layer
        }
        return list(layers), dict(results["provenance"]), drawn
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no result of aniso analyze; remove it, its folder is reported without"
        ) from error
