"""The code of README and guide, as a reader would run it: every block, every command line."""

from __future__ import annotations

import importlib.util
import re
import shlex
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import torch
from dump_helpers import rows, write_shard

import aniso
from aniso.cli import cli

ROOT = Path(__file__).parent.parent
PAGES = {p.relative_to(ROOT).as_posix(): p for p in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}


def blocks(name, language):
    return re.findall(rf"^```{language}[^\n]*\n(.*?)^```", TEXTS[name], re.M | re.S)


COMMANDS = sorted(
    {
        part
        for name in PAGES
        for line in "".join(blocks(name, "bash")).splitlines()
        for part in line.split(" && ")
        if part.startswith("aniso ")
    }
)


class LensModel:
    """What the guide calls of TransformerLens, by the names it has there."""

    def run_with_cache(self, tokens, names_filter):
        names = [
            f"blocks.{i}.{hook}" for i in (0, 1) for hook in ("hook_resid_pre", "hook_resid_post")
        ]
        cache = {n: torch.randn(*tokens.shape, 16) for n in names if names_filter(n)}
        return torch.zeros(*tokens.shape, 50), cache


class NnModel:
    """What the guide calls of nnsight: a trace, and modules whose outputs can be saved."""

    def __init__(self):
        hidden = SimpleNamespace(save=lambda: torch.randn(1, 6, 16))
        block = SimpleNamespace(output=(hidden,))
        self.transformer = SimpleNamespace(h=[block, block])

    @contextmanager
    def trace(self, prompt):
        yield


@pytest.fixture
def session(minilm, tmp_path, monkeypatch):
    """`a`, `b`, `model`, `batch`, models of other libraries and a dump: the reader's own."""
    monkeypatch.setattr("aniso.profile.kernels._KERNELS", {})
    monkeypatch.chdir(tmp_path)
    for i in (0, 1):
        hidden = rows(40, 3 * 8, i).reshape(40, 3, 8)
        (tmp_path / "vllm-dump").mkdir(exist_ok=True)
        write_shard(
            tmp_path / "vllm-dump" / f"req-{i}.safetensors",
            {"hidden_states": hidden, "token_ids": torch.arange(40)},
        )
    batch = minilm.tokenizer(
        ["A sentence.", "Another one, longer."], padding=True, return_tensors="pt"
    )
    mine = torch.randn(200, 16)
    return {
        "a": mine,
        "b": mine + torch.randn(200, 16),
        "model": minilm.model,
        "batch": batch,
        "lens_model": LensModel(),
        "nn_model": NnModel(),
        "tokens": torch.zeros(2, 5, dtype=torch.int64),
    }


@pytest.mark.parametrize("name", [name for name in PAGES if blocks(name, "python")])
def test_every_python_block_runs(name, session):
    """One after the other in one session per page."""
    for number, block in enumerate(blocks(name, "python")):
        exec(compile(block, f"{name} block {number}", "exec"), session)
    if name == "docs/profiling.md":
        assert session["measured"].correct
    if name == "docs/integrations.md":
        assert list(session["states"]) == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
        assert session["report"].layers and session["metric"].layer_state().moments.rows == 600


def test_the_blocks_are_found():
    assert len(blocks("README.md", "python")) >= 1
    assert len(blocks("docs/use.md", "python")) >= 9
    assert {"analyze", "capture", "compare", "demo", "info", "profile", "report"} <= {
        command.split()[1] for command in COMMANDS
    }
    for name in ("svd", "truncated_svd", "sequence_spectra", "attach", "SoftDecay"):
        assert f"aniso.{name}(" in TEXTS["docs/use.md"]
        assert name in aniso.__all__


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_and_option_is_known(line):
    words = shlex.split(line, comments=True)
    words = words[1 : words.index(">")] if ">" in words else words[1:]
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None, line
    # Raises where an option is unknown or an argument is missing.
    command.make_context(words[0], words[1:])


def test_pages_made_from_the_code_are_up_to_date():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, text in generate.pages().items():
        assert TEXTS[f"docs/{name}"] == text, f"{name} is old: run python docs/generate.py"
    for name in aniso.__all__:
        assert f"\n## {name}\n" in TEXTS["docs/api.md"]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)\)", TEXTS[name]):
        if "://" not in target and target not in ("docs/scaling.md", "scaling.md"):
            assert (PAGES[name].parent / target).exists(), f"{name}: {target}"
