"""What goes wrong with live models: each a clear sentence or the right result."""

from __future__ import annotations

import pytest
import torch
from rows import assert_moments
from torch import nn
from transformers import BertConfig, BertModel

import aniso
from aniso.experiments import mean_vectors, query_key, token_uniformity
from aniso.models import TextModel

LAYER = "encoder.layer.1"


@pytest.fixture
def model():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 50}
    config = BertConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    return BertModel(config, add_pooling_layer=False).eval()


@pytest.fixture
def ids():
    return torch.randint(5, 50, (3, 7))


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Blocks(nn.Module):
    """Two linear blocks; unlike Hugging Face's it takes batches without sequences or tokens."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x, attention_mask=None):
        for block in self.blocks:
            x = block(x)
        return x


def last(model, **inputs):
    with torch.no_grad():
        return model(**inputs).last_hidden_state


def clean(model):
    return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_call_that_raises_is_not_half_counted(model, ids):
    calls = []

    def second_raises(*_):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("the user's own")

    handle = model.encoder.layer[0].register_forward_hook(second_raises)
    with aniso.capture(model) as run:
        last(model, input_ids=ids)
        with pytest.raises(RuntimeError, match="the user's own"):
            last(model, input_ids=ids)
        last(model, input_ids=ids)
    with pytest.raises(aniso.InputError, match="1 of 3 calls of the model raised an error midway"):
        run.compute()
    handle.remove()
    assert clean(model)


def test_an_error_in_a_transform_leaves_the_model_as_it_was(model, ids):
    def fails(hidden, mask):
        raise ZeroDivisionError

    plain = last(model, input_ids=ids)
    with pytest.raises(ZeroDivisionError), aniso.attach(model, LAYER, fails):
        last(model, input_ids=ids)
    assert clean(model) and torch.equal(last(model, input_ids=ids), plain)


def test_a_batch_without_mask_counts_every_token(model, ids):
    plain = last(model, input_ids=ids)
    with aniso.capture(model) as run:
        last(model, input_ids=ids)
    assert {state.moments.rows for state in run.states.values()} == {21}
    with aniso.attach(model, LAYER, aniso.SoftDecay(mode="continuous")):
        found = last(model, input_ids=ids)
    assert torch.allclose(found, aniso.soft_decay(plain, mode="continuous"), atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_an_empty_batch_adds_nothing(shape):
    model, x = Blocks(), torch.randn(2, 5, 6)
    empty = torch.empty(*shape, 6), torch.ones(shape)
    with torch.no_grad(), aniso.capture(model) as run:
        model(*empty)
        model(x)
        model(*empty)
    with torch.no_grad(), aniso.capture(model) as once:
        model(x)
    for name, state in run.finished().items():
        assert_moments(state.moments, once.states[name].moments)
    for transform in (aniso.SoftDecay(), aniso.Whitening(), aniso.AllButTheTop()):
        with torch.no_grad(), aniso.attach(model, "blocks.1", transform):
            assert model(*empty).shape == (*shape, 6)
            assert model(empty[0]).shape == (*shape, 6)


def test_only_empty_batches_have_no_cosine():
    model = Blocks()
    with torch.no_grad(), aniso.capture(model) as run:
        model(torch.empty(0, 5, 6))
    metrics = run.compute()["blocks.1"].metrics
    assert metrics.get("mean_cosine") is None or metrics["mean_cosine"] != metrics["mean_cosine"]


def test_layers_that_never_run_are_named(model, minilm):
    model.unused = nn.Linear(16, 16)
    model.resize_token_embeddings(len(minilm.tokenizer))
    loaded = TextModel(model, minilm.tokenizer, 16)
    with pytest.raises(aniso.InputError, match="layer unused did not run"):
        mean_vectors(loaded, ["one"], [0, "unused"])
    with pytest.raises(aniso.InputError, match="layer unused did not run"):
        token_uniformity(loaded, ["one"], {}, layers=[0, "unused"], progress=False)
    assert clean(model)


def test_a_device_map_that_offloads_layers(model, ids, tmp_path):
    """The weights of such layers lie nowhere until their module runs."""
    model.save_pretrained(tmp_path / "model")
    places = {"embeddings": "cpu", "encoder.layer.0": "disk", LAYER: "cpu"}
    options = {"device_map": places, "offload_folder": tmp_path / "offloaded"}
    spread = BertModel.from_pretrained(tmp_path / "model", add_pooling_layer=False, **options)
    spread.eval()
    assert {p.device.type for p in spread.parameters()} == {"cpu", "meta"}
    runs = []
    for one in (model, spread):
        with aniso.capture(one) as run:
            plain = last(one, input_ids=ids)
        runs.append(run.compute())
        assert str(run.memory).startswith("states of 3 × ") and " on cpu" in str(run.memory)
    for name, layer in runs[0].items():
        assert runs[1][name].metrics == pytest.approx(layer.metrics, rel=1e-9, nan_ok=True)
    for layer in ("embeddings", "encoder.layer.0", LAYER):
        found = []
        for one in (model, spread):
            with aniso.attach(one, layer, aniso.SoftDecay(mode="continuous")):
                found.append(last(one, input_ids=ids))
        assert torch.equal(*found) and not torch.equal(found[0], plain)
    assert torch.equal(last(spread, input_ids=ids), plain)


def test_tokens_that_are_not_finite(model, ids):
    """Capture counts them and leaves them out; SoftDecay names the layer; both leave no hook."""
    bad = torch.zeros(3, 7, 1, dtype=torch.bool)
    bad[1, 2] = True

    def poison(module, args, output):
        states = output[0] if isinstance(output, tuple) else output
        states = torch.where(bad, float("nan"), states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = model.encoder.layer[1].register_forward_hook(poison)
    with aniso.capture(model) as run:
        last(model, input_ids=ids)
    counts = run.compute()[LAYER].counts
    assert (counts["rows"], counts["nonfinite_rows"]) == (20, 1)
    sentence = r"layer encoder\.layer\.1: .*NaN or infinite"
    decay = aniso.attach(model, LAYER, aniso.SoftDecay())
    with decay, pytest.raises(aniso.InputError, match=sentence):
        last(model, input_ids=ids)
    # Masked, they are none of the transform's business.
    with aniso.attach(model, LAYER, aniso.SoftDecay()):
        found = last(model, input_ids=ids, attention_mask=(~bad[..., 0]).long())
    assert torch.equal(found.isnan().all(dim=2), bad[..., 0])
    handle.remove()
    assert clean(model)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("given", ["wrapper", "in place"])
def test_a_model_compiled_before_attach(model, ids, given):
    plain = last(model, input_ids=ids)
    expected = aniso.soft_decay(plain, mode="continuous")
    compiled = model if given == "in place" else torch.compile(model, backend="eager")
    if given == "in place":
        model.compile(backend="eager")
    assert torch.allclose(last(compiled, input_ids=ids), plain, atol=1e-6)
    with aniso.attach(compiled, LAYER, aniso.SoftDecay(mode="continuous")):
        assert torch.allclose(last(compiled, input_ids=ids), expected, atol=1e-5)
    assert torch.allclose(last(compiled, input_ids=ids), plain, atol=1e-6)


@pytest.mark.usefixtures("compiler")
def test_a_model_compiled_before_capture(model, ids):
    compiled = torch.compile(model, backend="eager")
    plain = last(compiled, input_ids=ids)
    with aniso.capture(model) as run:
        last(compiled, input_ids=ids)
        last(compiled, input_ids=ids)
    rows = {state.moments.rows for state in run.finished().values()}
    assert run.layers == ("embeddings", "encoder.layer.0", LAYER) and rows == {42}
    assert torch.allclose(last(compiled, input_ids=ids), plain, atol=1e-6) and clean(model)
    assert {state.moments.rows for state in run.states.values()} == {42}


def test_queries_that_are_not_finite_are_null(minilm):
    weight = minilm.model.encoder.layer[5].attention.self.query.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(float("nan"))
        report = query_key({"m": minilm}, ["one", "two"], {}, layers=[5], progress=False)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    (layer,) = report.results()["models"][0]["layers"]
    assert layer["heads"]["logit_mean"] == [None] * 12
    assert all(v is not None for v in layer["heads"]["key_norm"])
