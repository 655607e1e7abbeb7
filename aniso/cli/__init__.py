"""The command line: one file per command, imported when it is used."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module

import click

from aniso.errors import InputError

_COMMANDS = (
    "demo",
    "analyze",
    "capture",
    "merge",
    "report",
    "compare",
    "experiment",
    "profile",
    "info",
)


class _LazyGroup(click.Group):
    """A group that imports a command's file when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"aniso.cli.{cmd_name}").command
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="aniso")
@click.option("--debug", is_flag=True, help="Show a traceback with errors.")
def cli(debug: bool) -> None:
    """Measure how alike a transformer's representations are, and how their energy is spread."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line.

    Exits with 0 when done, 2 on bad input or usage, 130 when interrupted, 1 on anything else; an
    error is one sentence on stderr, a traceback only with --debug.
    """
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    if not debug:
        sys.excepthook = _report_unexpected
    try:
        # --debug is accepted anywhere on the line.
        code = cli.main([a for a in given if a != "--debug"], standalone_mode=False)
    except InputError as error:
        if debug:
            traceback.print_exc()
        _fail(str(error), 2)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort) as interruption:
        # click turns a KeyboardInterrupt into an Abort that it causes.
        sentence = str(interruption.__cause__ or interruption)
        _fail(f"interrupted; {sentence or 'run the same command again'}", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(sentence: str, code: int) -> None:
    click.echo(f"aniso: {sentence}", err=True)
    sys.exit(code)


def _report_unexpected(kind: type[BaseException], error: BaseException, where: object) -> None:
    """What Python shows for an exception nobody caught; it then exits with 1."""
    first = next(iter(str(error).splitlines()), "")
    click.echo(f"aniso: {kind.__name__}: {first} (--debug shows where)", err=True)
