"""The README's code, as a reader would run it: Python block after block, and every command line."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import torch

import aniso
from aniso.cli import cli

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
SHELL = re.findall(r"^```bash[^\n]*\n(.*?)^```", README, re.M | re.S)
COMMANDS = [
    part
    for line in "".join(SHELL).splitlines()
    for part in line.split(" && ")
    if part.startswith("aniso ")
]


def test_every_python_block_runs(minilm, monkeypatch):
    """One after the other in one session; `a`, `b`, `model` and `batch` are the reader's own."""
    monkeypatch.setattr("aniso.profile.kernels._KERNELS", {})
    batch = minilm.tokenizer(
        ["A sentence.", "Another one, longer."], padding=True, return_tensors="pt"
    )
    rows = torch.randn(200, 16)
    session = {
        "a": rows,
        "b": rows + torch.randn(200, 16),
        "model": minilm.model,
        "batch": batch,
    }
    for number, block in enumerate(PYTHON):
        exec(compile(block, f"README block {number}", "exec"), session)
    assert session["stats"].rows == 10_000
    assert session["measured"].correct


def test_the_blocks_are_found():
    assert len(PYTHON) >= 10
    assert {"analyze", "capture", "compare", "demo", "info", "profile", "report"} <= {
        command.split()[1] for command in COMMANDS
    }
    for name in ("svd", "truncated_svd", "sequence_spectra", "attach", "SoftDecay"):
        assert f"aniso.{name}(" in "".join(PYTHON)
        assert name in aniso.__all__


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_and_option_is_known(line):
    words = shlex.split(line, comments=True)
    words = words[1 : words.index(">")] if ">" in words else words[1:]
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None, line
    # Raises where an option is unknown or an argument is missing.
    command.make_context(words[0], words[1:])
