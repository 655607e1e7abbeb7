"""Writes the pages of docs/ that are made from the code: `python docs/generate.py`."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click

import aniso
from aniso.cli import cli
from aniso.metrics import METRICS

FOLDER = Path(__file__).parent
MADE = "Made from the code by `python docs/generate.py`; a test holds it to the code.\n"


def pages() -> dict[str, str]:
    """Return file name to text of every page that is made from the code."""
    return {"api.md": api(), "commands.md": commands(), "metrics.md": metrics()}


def api() -> str:
    """Return the page of all public names: signature and the whole docstring."""
    parts = ["# Public functions and classes\n", MADE]
    for name in sorted(aniso.__all__, key=str.lower):
        thing = getattr(aniso, name)
        if name == "METRICS":
            parts.append("## METRICS\n\n`{key: Metric}`; see [metrics](metrics.md).\n")
            continue
        parts.append(f"## {name}\n\n{_described(thing, _signature(name, thing))}")
        members = sorted(vars(thing).items()) if inspect.isclass(thing) else []
        parts += [_member(name, key, value) for key, value in members if not key.startswith("_")]
    return "\n".join(part for part in parts if part)


def commands() -> str:
    """Return the page of all commands with their help."""
    parts = ["# Commands\n", MADE]
    context = click.Context(cli, info_name="aniso", help_option_names=["-h", "--help"])
    context.max_content_width = context.terminal_width = 90
    parts.append(f"```text\n{cli.get_help(context)}\n```\n")
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        parts.append(_help(command, click.Context(command, info_name=name, parent=context)))
    return "\n".join(parts)


def metrics() -> str:
    """Return the page of all metrics with formula and source."""
    rows = [
        f"| `{m.key}` | {m.title} | {_cell(m.formula)} | {_cell(m.reference)} |"
        for m in METRICS.values()
    ]
    head = ["| key | name | formula | source |", "|---|---|---|---|"]
    return "\n".join(["# Metrics\n", MADE, *head, *rows]) + "\n"


def _help(command: click.Command, context: click.Context) -> str:
    context.max_content_width = context.terminal_width = 90
    parts = [f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            parts.append(_help(below, click.Context(below, info_name=name, parent=context)))
    return "\n".join(parts)


def _member(owner: str, name: str, value: Any) -> str:
    """Return the entry of a method or property that has a docstring of its own, else nothing."""
    if isinstance(value, property):
        return f"### {owner}.{name}\n\n{_described(value, name)}" if value.__doc__ else ""
    function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
    if not inspect.isfunction(function) or not function.__doc__:
        return ""
    return f"### {owner}.{name}\n\n{_described(function, _signature(name, function))}"


def _signature(name: str, thing: Any) -> str:
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return name
    plain = inspect.signature(thing)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in plain.parameters.values()]
    bare = [p for p in bare if p.name not in ("self", "cls")]
    if [p.kind for p in bare] == [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]:
        bare = []  # a class without a constructor of its own
    return f"{name}{plain.replace(parameters=bare, return_annotation=inspect.Signature.empty)}"


def _described(thing: Any, signature: str) -> str:
    return f"```text\n{signature}\n\n{inspect.getdoc(thing)}\n```\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
