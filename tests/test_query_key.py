from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
)

import aniso
from aniso.cli import main
from aniso.experiments import query_key
from aniso.experiments._plot import Line, Panel, draw, layer_labels
from aniso.experiments.query_key import HeadState
from aniso.models import TextModel
from aniso.models.attention_heads import attention_heads

TEXTS = ["A cat sleeps.", "Rain is expected over the whole of the north tomorrow.", "No."]
SIZES = {"hidden_size": 24, "intermediate_size": 32, "vocab_size": 30522, "num_hidden_layers": 2}


def bert():
    return BertModel(BertConfig(num_attention_heads=3, **SIZES), add_pooling_layer=False).eval()


def gpt2():
    return GPT2Model(GPT2Config(n_layer=2, n_head=3, n_embd=24, vocab_size=30522)).eval()


def llama():
    """Three heads of queries share one of keys."""
    return LlamaModel(LlamaConfig(num_attention_heads=3, num_key_value_heads=1, **SIZES)).eval()


def projected(model, inputs):
    """Queries and keys [heads, t, 8] of the second layer, from its weights and its input."""
    states = {}
    if isinstance(model, BertModel):
        attention = model.encoder.layer[1].attention.self
        attention.register_forward_pre_hook(lambda m, args: states.update(x=args[0]))
        weights = [(p.weight, p.bias) for p in (attention.query, attention.key)]
    elif isinstance(model, GPT2Model):
        fused = model.h[1].attn.c_attn
        fused.register_forward_pre_hook(lambda m, args: states.update(x=args[0]))
        weights = list(zip(fused.weight.T.split(24), fused.bias.split(24), strict=True))[:2]
    else:
        attention = model.layers[1].self_attn
        attention.q_proj.register_forward_pre_hook(lambda m, args: states.update(x=args[0]))
        weights = [(p.weight, 0) for p in (attention.q_proj, attention.k_proj)]
    with torch.no_grad():
        model(**inputs)
        q, k = ((states["x"][0] @ w.T + b).double() for w, b in weights)
    q, k = (x.unflatten(1, (-1, 8)).transpose(0, 1) for x in (q, k))
    return q, k.expand_as(q)


@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_equals_a_direct_computation(make, minilm):
    """Also in batches with padding: one number per head from all logits, formed one by one."""
    model = make()
    loaded = TextModel(model, minilm.tokenizer, 64)
    report = query_key({"m": loaded}, TEXTS, {}, layers=[1], batch_size=2, progress=False)
    (found,) = report.models["m"].values()
    both = [projected(model, minilm.tokenizer(text, return_tensors="pt")) for text in TEXTS]
    q, k = (torch.cat(parts, dim=1) for parts in zip(*both, strict=True))
    logits = torch.cat([(q @ k.mT).flatten(1) / math.sqrt(8) for q, k in both], dim=1)
    expected = {
        "query_norm": q.norm(dim=2).mean(dim=1),
        "key_norm": k.norm(dim=2).mean(dim=1),
        "query_drift": q.mean(dim=1).norm(dim=1),
        "key_drift": k.mean(dim=1).norm(dim=1),
        "drift_cosine": nn.functional.cosine_similarity(q.mean(dim=1), k.mean(dim=1)),
        "logit_mean": logits.mean(dim=1),
        "logit_var": logits.var(dim=1, correction=0),
    }
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value.tolist(), rel=1e-4, abs=1e-6), key


def test_a_variance_far_below_the_mean():
    """Logits 1e8 ± 1e-2: the difference of squares has no digit left."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.head_dim = nn.Identity(), nn.Identity(), 2

    (heads,) = attention_heads(nn.ModuleDict({"a": Attention()}))
    q = torch.tensor([[[1e4, 0.0], [1e4, 1e-3]]], dtype=torch.float64)
    k = torch.tensor([[[1e4, 10.0], [1e4, -10.0]]], dtype=torch.float64)
    state = HeadState(heads)
    state.update(q, k, None)
    # The logits are (1e8, 1e8, 1e8 + 1e-2, 1e8 − 1e-2)/√2.
    assert state.compute()["logit_var"] == pytest.approx([0.25e-4], rel=1e-9)


def test_the_command_prints_and_writes(tmp_path, minilm, capsys):
    text = tmp_path / "texts.txt"
    text.write_text("\n".join(TEXTS))
    model = bert()
    model.save_pretrained(tmp_path / "model")
    minilm.tokenizer.save_pretrained(tmp_path / "model")
    both = ["--model", str(minilm.model.name_or_path), "--model", str(tmp_path / "model")]

    def command(*more):
        with pytest.raises(SystemExit) as ended:
            main(["experiment", "query-key", "--text", str(text), *more])
        return ended.value.code, capsys.readouterr()

    code, shown = command(*both, "--layers", "0", "--out", str(tmp_path / "o"))
    assert code == 0 and "query-key.svg" in shown.out
    saved = json.loads((tmp_path / "o" / "query-key.json").read_text())
    assert [m["model"] for m in saved["models"]] == both[1::2]
    (layer,) = saved["models"][0]["layers"]
    assert layer["name"] == "encoder.layer.0.attention.self"
    assert len(layer["heads"]["logit_var"]) == 12
    assert ElementTree.parse(tmp_path / "o" / "query-key.svg").getroot().tag.endswith("svg")
    code, shown = command("--json")
    assert code == 0 and len(json.loads(shown.out)["models"][0]["layers"]) == 6


def test_the_axis_over_layers_has_their_names():
    names = [f"encoder.layer.{i}.attention.self" for i in range(3)]
    label, ticks = layer_labels({"one": dict.fromkeys(names), "other": dict.fromkeys(names)})
    assert label == "layer (encoder.layer.*.attention.self)" and ticks == ["0", "1", "2"]
    assert layer_labels({"one": {"a": 0}, "other": {"b": 0}}) == ("position of the layer", [])
    assert layer_labels({})[1] == []


def test_a_logarithmic_axis_shows_small_and_large_values_apart():
    lines = [Line("m", range(4), [1e-3, 1e-2, 1.0, 100.0])]
    svg = draw([Panel("title", "layer", lines, list("abcd"), "y", "variance")])
    (curve,) = (d for d in re.findall(r' d="([^"z]+)" clip-path', svg) if d.count("L") == 3)
    y = [float(height) for height in re.findall(r"[\d.]+ ([\d.]+)", curve)]
    assert y[0] - y[1] == pytest.approx((y[1] - y[2]) / 2, rel=1e-3) and y[2] > y[3]
    texts = "".join(ElementTree.fromstring(svg).itertext())
    assert all(word in texts for word in ("variance", "layer", "title"))


def test_refusals_are_one_sentence(minilm):
    with pytest.raises(aniso.InputError, match="has no attention with projections"):
        attention_heads(nn.Linear(2, 2))
    with pytest.raises(aniso.InputError, match="near names"):
        query_key({"m": minilm}, TEXTS, {}, layers="encoder.layer.7.attention.self")
    block = nn.ModuleDict({"query": nn.Identity(), "key": nn.Identity()})
    with pytest.raises(aniso.InputError, match="heads of a are of unknown size"):
        attention_heads(nn.ModuleDict({"a": block}))
    bare = TextModel(bert(), minilm.tokenizer, 64)
    bare.model.unused = bert().encoder.layer[0]
    with pytest.raises(aniso.InputError, match=r"unused.attention.self has seen no token"):
        query_key({"m": bare}, TEXTS, {}, progress=False)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in bare.model.modules())
