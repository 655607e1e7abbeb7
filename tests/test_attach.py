from __future__ import annotations

import json
from collections import namedtuple

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

import aniso
from aniso.cli import main
from aniso.models import packaged_model, run_texts

SMALL = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 50}


def bert():
    config = BertConfig(num_hidden_layers=2, num_attention_heads=2, **SMALL)
    return BertModel(config, add_pooling_layer=False).eval()


def gpt2():
    return GPT2Model(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50)).eval()


def llama():
    config = LlamaConfig(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, **SMALL)
    return LlamaModel(config).eval()


MAKERS = {bert: "encoder.layer.1", gpt2: "h.1", llama: "layers.1"}
NORMS = {gpt2: "ln_f", llama: "norm"}


def batch(side="right"):
    kept = torch.arange(7) < torch.tensor([[7], [5], [3]])
    mask = kept.flip(1) if side == "left" else kept
    return {"input_ids": torch.randint(5, 50, (3, 7)), "attention_mask": mask.long()}


def blocks_output(model, layer, inputs):
    seen = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        last = model(**inputs).last_hidden_state
    handle.remove()
    return seen[0], last


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_block_is_transformed_before_the_final_norm(make, side):
    model, inputs = make(), batch(side)
    before, _ = blocks_output(model, MAKERS[make], inputs)
    mask = inputs["attention_mask"].bool()
    expected = aniso.soft_decay(5 * before, -0.6, mask=mask)
    with aniso.attach(model, MAKERS[make], lambda x, mask: aniso.soft_decay(5 * x, mask=mask)):
        found, last = blocks_output(model, MAKERS[make], inputs)
    assert torch.allclose(found, expected, atol=1e-5)
    norm = model.get_submodule(NORMS[make]) if make in NORMS else nn.Identity()
    assert torch.allclose(last, norm(expected), atol=1e-5)


@pytest.mark.parametrize("make", NORMS)
def test_the_final_norm_is_transformed_after_it(make):
    model, inputs = make(), batch()
    with torch.no_grad():
        plain = model(**inputs).last_hidden_state
        with aniso.attach(model, NORMS[make], aniso.SoftDecay(mode="continuous")):
            found = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].bool()
    expected = aniso.soft_decay(plain, mode="continuous", mask=mask)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.equal(found[~mask], plain[~mask]) and not torch.allclose(found, plain, atol=1e-2)


def test_inputs_of_modules_and_the_embeddings():
    model, inputs = bert(), batch()
    norm, seen = "encoder.layer.1.output.LayerNorm", []
    with torch.no_grad():
        plain = model(**inputs).last_hidden_state
        with aniso.attach(model, norm, lambda x, mask: -x, side="input") as handle:
            # Its bias is 0: the norm of −x is minus that of x.
            assert torch.allclose(model(**inputs).last_hidden_state, -plain, atol=1e-5)
        assert handle.layers == (norm,)
        model.encoder.layer[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        model(**inputs)
        doubled = aniso.attach(model, 0, lambda x, mask: 2 * x)
        with doubled, aniso.capture(model, "embeddings", gram=False) as run:
            model(**inputs)
    moments = run.states["embeddings"].moments
    mask = inputs["attention_mask"].bool()
    assert torch.allclose(moments.sums[0], 2 * seen[0][mask].double().sum(0), rtol=1e-5)


def test_removal_leaves_no_trace(tmp_path):
    model, inputs = bert(), batch()
    keys, plain = list(model.state_dict()), model(**inputs).last_hidden_state
    handle = aniso.attach(model, "encoder.layer.*", aniso.SoftDecay(-0.5, trainable=True))
    assert handle.layers == ("encoder.layer.0", "encoder.layer.1")
    assert not torch.equal(model(**inputs).last_hidden_state, plain)
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path / "model")
    handle.remove()
    handle.remove()
    assert torch.equal(model(**inputs).last_hidden_state, plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    again = BertModel.from_pretrained(tmp_path / "model", add_pooling_layer=False).eval()
    assert torch.equal(again(**inputs).last_hidden_state, plain)


def test_registered_transforms_are_the_models():
    model, transform = bert(), aniso.SoftDecay(-0.5, trainable=True)
    with aniso.attach(model, -1, transform, register=True):
        assert "aniso_transform.theta" in model.state_dict()
        assert any(p is transform.theta for p in model.parameters())
        with pytest.raises(aniso.InputError, match="has a registered transform"):
            aniso.attach(model, 0, aniso.SoftDecay(), register=True)
    assert "aniso_transform.theta" not in model.state_dict()


@pytest.mark.parametrize("make", MAKERS)
def test_alpha_is_trained_with_the_model(make):
    model, inputs = make().train(), batch()
    transform = aniso.SoftDecay(-0.5, mode="continuous", trainable=True)
    with aniso.attach(model, MAKERS[make], transform) as handle:
        optimizer = torch.optim.SGD([*model.parameters(), *handle.parameters()], lr=0.1)
        before = [p.detach().clone() for p in handle.parameters()]
        model(**inputs).last_hidden_state.pow(3).sum().backward()
        optimizer.step()
        (alpha,) = handle.parameters()
    assert len(before) == 1 and torch.isfinite(alpha) and not torch.equal(before[0], alpha)
    embedding = model.get_input_embeddings().weight
    assert torch.isfinite(embedding.grad).all() and embedding.grad.any()


def test_under_gradient_checkpointing():
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(num_hidden_layers=2, num_attention_heads=2, **SMALL, **dropout)
    model, inputs = BertModel(config, add_pooling_layer=False).train(), batch()

    def gradients():
        model.zero_grad()
        model(**inputs).last_hidden_state.pow(3).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    inside = "encoder.layer.0.attention.output"
    transform = aniso.SoftDecay(mode="continuous")
    calls = []
    transform.register_forward_hook(lambda *_: calls.append(1))
    with aniso.attach(model, [inside, -1], transform):
        plain = gradients()
        once = len(calls)
        # The name of transformers 5, and of 4.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)()
        for found, true in zip(gradients(), plain, strict=True):
            assert torch.allclose(found, true, atol=1e-5)
    assert len(calls) > 2 * once, "nothing was recomputed"


@pytest.mark.parametrize("make", MAKERS)
def test_compiled_models(make):
    torch._dynamo.reset()
    model, inputs = make(), batch()
    with aniso.attach(model, MAKERS[make], aniso.SoftDecay(mode="continuous")), torch.no_grad():
        plain = model(**inputs).last_hidden_state
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.allclose(compiled(**inputs).last_hidden_state, plain, atol=1e-5)
    torch._dynamo.reset()


def test_generation_with_a_cache():
    """One new token is a matrix of one row, which SoftDecay leaves as it is."""
    config = LlamaConfig(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, **SMALL)
    model, inputs = LlamaForCausalLM(config).eval(), batch("left")
    with aniso.attach(model, "model.layers.1", aniso.SoftDecay(mode="continuous")):
        tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert tokens.shape == (3, 10)


def test_any_model_and_any_form_of_output():
    Pair = namedtuple("Pair", "hidden other")

    class Block(nn.Module):
        def __init__(self, form):
            super().__init__()
            self.linear, self.form = nn.Linear(6, 6), form

        def forward(self, x):
            return self.form(self.linear(x))

    forms = {
        "tensor": lambda t: t,
        "tuple": lambda t: (t, None),
        "list": lambda t: [t, None],
        "named tuple": lambda t: Pair(t, None),
        "dict": lambda t: {"hidden": t, "other": None},
    }
    x = 5 * torch.randn(2, 4, 6)
    for name, form in forms.items():
        model = nn.Sequential(Block(form))
        plain = model[0].linear(x)
        with aniso.attach(model, "0", aniso.SoftDecay(mode="continuous")):
            y = model(x)
        expected = form(aniso.soft_decay(plain, mode="continuous"))
        assert type(y) is type(expected), name
        first = y if name == "tensor" else next(iter(y.values() if name == "dict" else y))
        assert torch.allclose(first, aniso.soft_decay(plain, mode="continuous"), atol=1e-6)


def test_hidden_states_without_a_batch_dimension():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def forward(self, x, attention_mask):
            return self.linear(x.flatten(0, 1)).view_as(x)

    model, x = Flat(), 5 * torch.randn(2, 4, 6)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with aniso.attach(model, "linear", aniso.SoftDecay()):
        y = model(x, mask)
    assert torch.allclose(y, aniso.soft_decay(model.linear(x), mask=mask.bool()), atol=1e-6)


def test_refusals_are_one_sentence():
    model = bert()
    with pytest.raises(aniso.InputError, match="near names are"):
        aniso.attach(model, "encoder.layer.7", aniso.SoftDecay())
    with pytest.raises(aniso.InputError, match="side is 'both'"):
        aniso.attach(model, 0, aniso.SoftDecay(), side="both")
    with pytest.raises(aniso.InputError, match=r"is no nn\.Module"):
        aniso.attach(model, 0, aniso.soft_decay, register=True)
    with aniso.attach(model, "encoder", aniso.SoftDecay()):
        model(**batch())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_command_line_decays_a_layer(minilm, demo_texts, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("\n".join(demo_texts[:12]))
    arguments = ["--model", str(packaged_model()), "--text", str(tmp_path / "texts.txt"), "--json"]

    def results(*more):
        with pytest.raises(SystemExit) as ended:
            main(["capture", *arguments, *more])
        assert ended.value.code == 0
        return json.loads(capsys.readouterr().out)

    plain = results()["layers"]
    decayed = results(
        "--soft-decay", "encoder.layer.4=-0.6", "--soft-decay", "encoder.layer.5=-0.2"
    )
    assert decayed["provenance"]["soft_decay"] == "encoder.layer.4=-0.6, encoder.layer.5=-0.2"
    for name in range(5):
        assert decayed["layers"][name]["metrics"] == plain[name]["metrics"]
    decay = aniso.attach(minilm.model, "encoder.layer.4", aniso.SoftDecay(-0.6))
    with decay, aniso.capture(minilm.model, "encoder.layer.4") as run:
        run_texts(minilm, demo_texts[:12])
    found = decayed["layers"][5]["metrics"]
    for key, value in run.compute()["encoder.layer.4"].metrics.items():
        assert found[key] == pytest.approx(value, rel=1e-6), key
    assert found["stable_rank"] > plain[5]["metrics"]["stable_rank"]
    for bad in ("encoder.layer.4", "encoder.layer.4=", "=-0.6", "0=x", "0=-1.5", "nowhere=-0.5"):
        with pytest.raises(SystemExit) as ended:
            main(["capture", *arguments, "--soft-decay", bad])
        assert ended.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) <= 4
