"""The code of README and guide, as a reader would run it: every block, every command line."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import torch
from dump_helpers import rows, write_shard
from transformers import GPT2Config, GPT2LMHeadModel

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
    """A small model by the calls that the guide makes of TransformerLens, with its hook names."""

    def __init__(self, model):
        self._model = model

    def run_with_cache(self, tokens, names_filter):
        cache = {}

        def keep(name, value):
            if names_filter(name):
                cache[name] = value

        with ExitStack() as hooks:
            for i, block in enumerate(self._model.transformer.h):
                pre, post = (f"blocks.{i}.hook_resid_{side}" for side in ("pre", "post"))
                before = block.register_forward_pre_hook(lambda _, args, n=pre: keep(n, args[0]))
                after = block.register_forward_hook(lambda _, args, out, n=post: keep(n, out))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            logits = self._model(tokens).logits
        return logits, cache


class Traced(torch.Tensor):
    """What a module gave in a trace."""

    def save(self):
        return self.as_subclass(torch.Tensor)


class NnModel:
    """A small model by the calls that the guide makes of nnsight: what modules give, by path."""

    def __init__(self, model):
        self._model = model
        self.transformer = SimpleNamespace(h=[SimpleNamespace() for _ in model.transformer.h])

    @contextmanager
    def trace(self, prompt):
        with ExitStack() as hooks:
            for block, envoy in zip(self._model.transformer.h, self.transformer.h, strict=True):
                hook = block.register_forward_hook(
                    lambda _, args, out, e=envoy: setattr(e, "output", out.as_subclass(Traced))
                )
                hooks.callback(hook.remove)
            self._model(byte_tokens(prompt))
            yield


def byte_tokens(prompt):
    return torch.tensor([list(prompt.encode())])


def small_gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=256, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    return GPT2LMHeadModel(config).eval()


def captured(model, tokens):
    with torch.no_grad(), aniso.capture(model, "transformer.h.*") as run:
        model(tokens)
    return run.compute().values()


class RayModule:
    """What the guide calls of Ray: a task that is a call, and its result."""

    @staticmethod
    def remote(task):
        return SimpleNamespace(remote=task)

    @staticmethod
    def get(results):
        return results


@pytest.fixture
def session(minilm, tmp_path, monkeypatch):
    """`a`, `b`, `model`, `batch`, models of other libraries and a dump: the reader's own."""
    monkeypatch.setattr("aniso.profile.kernels._KERNELS", {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", RayModule)
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
    mine, gpt2 = torch.randn(200, 16), small_gpt2()
    return {
        "a": mine,
        "b": mine + torch.randn(200, 16),
        "model": minilm.model,
        "batch": batch,
        "gpt2": gpt2,
        "lens_model": LensModel(gpt2),
        "nn_model": NnModel(gpt2),
        "tokens": torch.arange(10).reshape(2, 5),
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
        assert_as_captured(session)
    if name == "docs/scaling.md":
        assert session["whole"].moments.rows == 8000
        expected = session["report"].layers["h.0"].metrics["mean_cosine"]
        assert session["whole"].compute().metrics["mean_cosine"] == pytest.approx(expected, 1e-9)


def assert_as_captured(session):
    """What TransformerLens and nnsight hand out is what a capture of the same model reads."""
    live = captured(session["gpt2"], session["tokens"])
    for state, layer in zip(session["states"].values(), live, strict=True):
        assert state.compute().metrics == pytest.approx(layer.metrics, rel=1e-9, nan_ok=True)
    *_, last = captured(session["gpt2"], byte_tokens("The sky is blue."))
    assert session["state_of_trace"].compute().metrics == pytest.approx(
        last.metrics, rel=1e-9, nan_ok=True
    )


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
    # In a process of its own: what other tests registered is no part of the pages.
    code = "import json, runpy, sys; print(json.dumps(runpy.run_path(sys.argv[1])['pages']()))"
    command = [sys.executable, "-P", "-c", code, str(ROOT / "docs" / "generate.py")]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name, text in json.loads(made).items():
        assert TEXTS[f"docs/{name}"] == text, f"{name} is old: run python docs/generate.py"
    for name in aniso.__all__:
        assert f"\n## {name}\n" in TEXTS["docs/api.md"]


def test_figures_of_the_readme_are_measured_ones():
    found = json.loads((ROOT / "benches/results/cpu-2-cores-avx512.json").read_text())
    measured = {
        (run["commit"], f"{ratio:.1f}") for run in found["runs"] for ratio in run["ratio"].values()
    }
    quoted = re.findall(r"\| ([\d.]+) × \| (\w{7}) \|", TEXTS["README.md"])
    assert len(quoted) == 3
    assert {(commit, ratio) for ratio, commit in quoted} <= measured
    assert "wo cores of a shared server with AVX-512 and AMX" in TEXTS["README.md"]
    assert found["machine"].endswith("cores of a shared server with AVX-512 and AMX")


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)\)", TEXTS[name]):
        if "://" not in target:
            assert (PAGES[name].parent / target).exists(), f"{name}: {target}"
