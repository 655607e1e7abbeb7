"""Sites inside blocks: attention, MLP, queries and keys per head; names of TransformerLens."""

from __future__ import annotations

import pytest
import torch
from rows import assert_moments
from test_modalities import FAMILIES, bert, gpt2, llama, t5, vit, wav2vec2, whisper

import aniso
from aniso import reference
from aniso.models import hook_points

ALL = ("queries", "keys", "attention", "mlp", "residual")

# Within block 1 of the first stack: attention out, MLP out, attention module, the heads of keys.
SITES = {
    bert: ("attention.output.dense", "output.dense", "attention.self", 2),
    gpt2: ("attn.c_proj", "mlp", "attn", 2),
    llama: ("self_attn.o_proj", "mlp", "self_attn", 1),
    t5: ("layer.0.SelfAttention.o", "layer.1.DenseReluDense", "layer.0.SelfAttention", 2),
    vit: ("attention.o_proj", "mlp", "attention", 2),
    wav2vec2: ("attention.out_proj", "feed_forward", "attention", 2),
    whisper: ("self_attn.out_proj", "fc2", "self_attn", 2),
}


def names_of(make, stack):
    """The names of all sites of block 1, in order."""
    attention, mlp, heads, keys = SITES[make]
    block = f"{stack}.1"
    found = [f"{block}.{heads}.queries.{head}" for head in range(2)]
    found += [f"{block}.{heads}.keys.{head}" for head in range(keys)]
    return [*found, f"{block}.{attention}", f"{block}.{mlp}", block]


@pytest.mark.parametrize("make", FAMILIES, ids=lambda make: make.__name__)
def test_every_site_of_every_family(make):
    model, inputs = make()
    model.eval()
    with torch.no_grad(), aniso.capture(model, sites=ALL) as run:
        model(**inputs)
    states = run.finished()
    assert run.layers[0] == "embeddings"
    stack, tokens = next(iter(FAMILIES[make].items()))
    names = [name for name in run.layers if name.startswith(f"{stack}.1")]
    assert names == names_of(make, stack)
    assert {states[name].moments.rows for name in names} == {tokens}
    assert {states[name].dim for name in names[:-3]} == {8}
    assert {states[name].dim for name in names[-3:]} == {16}


@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_heads_are_those_of_the_projections(make):
    model, inputs = make()
    model.eval()
    keep = inputs["attention_mask"].bool()
    seen = {}
    module = {bert: "attention.self.key", gpt2: "attn.c_attn", llama: "self_attn.k_proj"}[make]
    stack = next(iter(FAMILIES[make]))
    hooked = model.get_submodule(f"{stack}.1.{module}")
    handle = hooked.register_forward_hook(lambda m, args, out: seen.update(keys=out))
    with torch.no_grad(), aniso.capture(model, 2, sites="keys") as run:
        model(**inputs)
    handle.remove()
    keys = seen["keys"].chunk(3, dim=-1)[1] if make is gpt2 else seen["keys"]
    heads = keys.unflatten(-1, (-1, 8)).unbind(2)
    assert len(run.layers) == len(heads)
    for name, head in zip(run.layers, heads, strict=True):
        expected = reference.row_moments(head[keep])
        found = run.states[name].moments
        assert found.masked_rows == int((~keep).sum())
        found.counts[3] = 0
        assert_moments(found, expected)


def test_what_blocks_add_is_what_they_are_made_of():
    """GPT-2: residual out = residual in + attention + MLP, so their sums add up too."""
    model, inputs = gpt2()
    model.eval()
    with torch.no_grad(), aniso.capture(model, sites=("residual", "attention", "mlp")) as run:
        model(**inputs)
    sums = {name: state.moments.sums[0] for name, state in run.finished().items()}
    parts = sums["embeddings"] + sums["h.0.attn.c_proj"] + sums["h.0.mlp"]
    assert torch.allclose(sums["h.0"], parts, atol=1e-5)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("blocks.1.hook_resid_post", ["h.1"]),
        ("blocks.1.hook_resid_pre", ["h.0"]),
        ("blocks.0.hook_resid_pre", ["embeddings"]),
        ("hook_embed", ["embeddings"]),
        ("blocks.1.hook_attn_out", ["h.1.attn.c_proj"]),
        ("blocks.*.hook_mlp_out", ["h.0.mlp", "h.1.mlp"]),
        ("blocks.0.attn.hook_q", ["h.0.attn.queries.0", "h.0.attn.queries.1"]),
        (["blocks.1.attn.hook_k", 0], ["embeddings", "h.1.attn.keys.0", "h.1.attn.keys.1"]),
    ],
)
def test_names_of_transformer_lens(wanted, expected):
    model, _ = gpt2()
    assert [point.name for point in hook_points(model, wanted)] == expected


def test_a_models_own_names_come_before_those_of_transformer_lens():
    model, _ = gpt2()
    model.hook_embed = torch.nn.Linear(2, 2)
    (point,) = hook_points(model, "hook_embed")
    assert (point.name, point.site) == ("hook_embed", "module")


def test_points_know_layer_site_and_norm():
    model, _ = gpt2()
    facts = {p.name: p.facts() for p in hook_points(model, ["h.1", "ln_f", "h.0.mlp", "h.0.ln_1"])}
    assert facts["h.1"] == {"layer": 2, "site": "residual", "pre_norm": True}
    assert facts["h.0.mlp"] == {"layer": 1, "site": "mlp", "pre_norm": True}
    assert facts["h.0.ln_1"] == {"layer": 1, "site": "module", "pre_norm": True}
    assert facts["ln_f"] == {"layer": None, "site": "module", "pre_norm": False}
    # The blocks of BERT end in a norm of their own, and none follows.
    assert not any(point.pre_norm for point in hook_points(bert()[0]))


def test_attach_takes_sites_of_a_whole_module():
    model, inputs = gpt2()
    model.eval()
    none = aniso.attach(model, "blocks.0.hook_mlp_out", lambda x, mask: 0 * x)
    with torch.no_grad(), none, aniso.capture(model, sites=("attention", "residual")) as run:
        model(**inputs)
    sums = {name: state.moments.sums[0] for name, state in run.finished().items()}
    assert torch.allclose(sums["h.0"], sums["embeddings"] + sums["h.0.attn.c_proj"], atol=1e-5)
    with pytest.raises(aniso.InputError, match=r"h\.0\.attn\.queries\.0 is one head"):
        aniso.attach(model, "blocks.0.attn.hook_q", aniso.SoftDecay())


def test_refusals_are_one_sentence():
    model, _ = gpt2()
    with pytest.raises(aniso.InputError, match="there is no site 'logits'; the sites are queries"):
        aniso.capture(model, sites=("residual", "logits"))
    with pytest.raises(aniso.InputError, match="no site was named"):
        aniso.capture(model, sites=())
    with pytest.raises(aniso.InputError, match="embeddings has no mlp"):
        aniso.capture(model, 0, sites="mlp")
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    with pytest.raises(aniso.InputError, match="no attention was found in 0"):
        aniso.capture(net, sites="attention")
