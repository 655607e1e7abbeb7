"""Capture inside torch.compile: one graph, the sums of the eager capture, every row once."""

from __future__ import annotations

import pytest
import torch
from rows import about_origin, close
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

import aniso

SIZES = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 50}


@pytest.fixture(autouse=True)
def _compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def bert():
    config = BertConfig(num_hidden_layers=2, num_attention_heads=2, **SIZES)
    return BertModel(config, add_pooling_layer=False).eval()


def gpt2():
    return GPT2Model(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50)).eval()


class Blocks(nn.Module):
    """Two linear blocks, checkpointed or not."""

    def __init__(self, recompute=False):
        super().__init__()
        self.recompute = recompute
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x, attention_mask=None):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
            x = torch.relu(x)
        return x


def same(found, expected, tolerance=1e-6):
    """Every sum of two captures; `tolerance` allows for rows that were computed in another way."""
    assert list(found) == list(expected)
    for name in expected:
        ours, theirs = (
            vars(state.moments) if state.grams is None else about_origin(state)
            for state in (found[name], expected[name])
        )
        for part in theirs:
            if part != "gram_noise":
                close(ours[part], theirs[part], 1, f"{name} {part}", tolerance)


def captured(model, calls, run_model=None, **options):
    """Finished capture of a model on calls, which `run_model` runs."""
    run_model = model if run_model is None else run_model
    with aniso.capture(model, **options) as run:
        for call in calls:
            run_model(**call)
    return run


def batches(lengths):
    found = []
    for length in lengths:
        mask = torch.ones(3, length, dtype=torch.int64)
        mask[1, length // 2 :] = 0
        found.append({"input_ids": torch.randint(5, 50, (3, length)), "attention_mask": mask})
    return found


OPTIONS = [
    {},
    {"gram": False},
    {"sites": ("residual", "attention", "mlp", "queries", "keys")},
    {"exclude_token_ids": [7, 9], "max_norm_multiple": 1.05},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("make", [bert, gpt2])
def test_one_graph_and_the_sums_of_the_eager_capture(make, options):
    """Also when the batches change their length."""
    model, calls = make(), batches((7, 7, 5, 9, 4))
    with torch.no_grad():
        expected = captured(model, calls, **options)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        found = captured(model, calls, compiled, **options)
    same(found.finished(), expected.finished())
    same(found.left_out, expected.left_out)
    for name, metrics in found.compute().items():
        assert metrics.counts == expected.compute()[name].counts


def test_hooks_break_no_graph():
    model, (call,) = bert(), batches((7,))
    with aniso.capture(model):
        # Called in a function: dynamo makes graphs of their own of a compiled model's own hooks.
        explained = torch._dynamo.explain(lambda: model(**call))()
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    targets = [str(node.target) for graph in explained.graphs for node in graph.graph.nodes]
    assert targets.count("aniso.capture_rows.default") == 3


def test_the_default_compiler():
    """Inductor keeps the sums in place."""
    model, x = Blocks().eval(), torch.randn(2, 5, 6)
    calls = [{"x": x, "attention_mask": torch.ones(2, 5)}] * 2
    with torch.no_grad():
        expected = captured(model, calls)
        found = captured(model, calls, torch.compile(model, fullgraph=True))
    same(found.finished(), expected.finished())


@pytest.mark.parametrize("when", ["inference_mode", "autocast"])
def test_under_modes(when):
    model, calls = bert(), batches((6, 6))
    mode = torch.inference_mode() if when == "inference_mode" else torch.autocast("cpu")
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), mode:
        expected = captured(model, calls)
        found = captured(model, calls, compiled)
    half = when == "autocast"
    same(found.finished(), expected.finished(), 2e-2 if half else 1e-6)
    # The sums outlive inference mode as ordinary tensors.
    state = next(iter(found.finished().values()))
    state.update(torch.ones(1, 16))
    assert state.moments.rows == 2 * 15 + 1


@pytest.mark.parametrize("backend", [None, "aot_eager"])
@pytest.mark.parametrize("recompute", [False, True])
def test_what_the_backward_pass_recomputes_counts_once(backend, recompute):
    model, x = Blocks(recompute), torch.randn(2, 5, 6)
    run_model = torch.compile(model, backend=backend, fullgraph=True) if backend else model
    with aniso.capture(model) as run:
        for _ in range(3):
            run_model(x).sum().backward()
    rows = {name: state.moments.rows for name, state in run.finished().items()}
    assert rows == {"embeddings": 30, "blocks.0": 30, "blocks.1": 30}
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for _ in range(3):
        model(x).sum().backward()
    for found, parameter in zip(gradients, model.parameters(), strict=True):
        assert torch.allclose(found, parameter.grad, atol=1e-5)


def test_gradient_checkpointing_of_transformers():
    model, (call,) = bert().train(), batches((7,))
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    with aniso.capture(model) as run:
        model(**call).last_hidden_state.sum().backward()
    assert {state.moments.rows for state in run.finished().values()} == {7 + 3 + 7}


def test_calls_do_not_compile_again():
    model, calls = bert(), batches((7,) * 6)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), aniso.capture(model) as run, torch.compiler.set_stance("default"):
        compiled(**calls[0])
        with torch.compiler.set_stance("fail_on_recompile"):
            for call in calls[1:]:
                compiled(**call)
    assert {state.moments.rows for state in run.finished().values()} == {6 * 17}


def test_compiled_before_the_capture_and_run_after_it():
    model, (call,) = bert(), batches((7,))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        compiled(**call)
        with aniso.capture(model) as run:
            compiled(**call)
        compiled(**call)
    assert {state.moments.rows for state in run.finished().values()} == {17}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("captured_first", [False, True])
def test_another_model_of_the_class_has_no_part_in_it(captured_first):
    other, model, x = Blocks(), Blocks(), torch.randn(2, 5, 6)
    with torch.no_grad(), aniso.capture(model) as alone:
        model(x)
    with torch.no_grad(), aniso.capture(model) as run:
        calls = [torch.compile(m, backend="eager", fullgraph=True) for m in (model, other)]
        for call in calls if captured_first else reversed(calls):
            call(x)
    same(run.finished(), alone.finished())


def test_blocks_compiled_one_by_one():
    model, calls = bert(), batches((7, 5))
    with torch.no_grad():
        expected = captured(model, calls)
        for block in model.encoder.layer:
            block.compile(backend="aot_eager", fullgraph=True)
        found = captured(model, calls)
    same(found.finished(), expected.finished())


@pytest.mark.parametrize("options", [{"groups": "token_ids"}, {"memory": 12_000}, {"save": True}])
def test_what_is_not_static_runs_between_graphs(options, tmp_path):
    model, calls = bert(), batches((7, 5))
    compiled = torch.compile(model, backend="aot_eager")

    def folder(name):
        return {**options, "save": tmp_path / name} if "save" in options else options

    with torch.no_grad():
        expected = captured(model, calls, **folder("eager"))
        found = captured(model, calls, compiled, **folder("compiled"))
    if "memory" in options:
        assert expected.memory.kind.sketch == 0 and not expected.memory.kind.gram
        for name, state in expected.finished().items():
            assert found.states[name].moments.counts.tolist() == state.moments.counts.tolist()
        return
    same(found.finished(), expected.finished())
    if "groups" in options:
        for name, cosine in expected.group_cosine().items():
            assert found.group_cosine()[name].within == pytest.approx(cosine.within, rel=1e-5)
    if "save" in options:
        rows = [aniso.open_dump(tmp_path / name).rows for name in ("eager", "compiled")]
        assert rows == [7 + 3 + 7 + 5 + 2 + 5] * 2


def test_a_width_that_shows_when_the_layer_runs():
    """A block without projection or norm: the first call makes its sums, between graphs."""

    class Doubles(nn.Module):
        def forward(self, x):
            return 2 * x

    model = nn.Sequential(Doubles(), Doubles())
    compiled, x = torch.compile(model, backend="aot_eager"), torch.randn(4, 6)
    run = aniso.capture(model, ["0", "1"])
    assert run.memory.unknown == ("0", "1") and "shows when they run" in str(run.memory)
    with run:
        compiled(x)
        compiled(x)
    assert {state.moments.rows for state in run.finished().values()} == {8}
