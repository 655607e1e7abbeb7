from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from rows import SPAN_SUMS, about_origin, assert_moments, close
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5Model,
)

import aniso
from aniso import reference
from aniso._capture_run import capture_texts
from aniso.cli import main
from aniso.models import (
    CaptureOptions,
    TextModel,
    hook_points,
    load_model,
    packaged_model,
    run_texts,
    verify_weights,
)

SMALL = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 50}


def bert(layers=2):
    config = BertConfig(num_hidden_layers=layers, num_attention_heads=2, **SMALL)
    return BertModel(config, add_pooling_layer=False).eval()


def gpt2():
    return GPT2Model(GPT2Config(n_layer=3, n_head=2, n_embd=16, vocab_size=50)).eval()


def llama():
    config = LlamaConfig(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, **SMALL)
    return LlamaModel(config).eval()


def batch(side="right"):
    ids = torch.randint(5, 50, (3, 7))
    mask = torch.ones(3, 7, dtype=torch.int64)
    for row, padding in enumerate((0, 2, 4)):
        if padding:
            mask[row, slice(0, padding) if side == "left" else slice(7 - padding, 7)] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("make", [bert, gpt2, llama])
@pytest.mark.parametrize("side", ["left", "right"])
def test_states_are_those_of_the_hidden_states(make, side):
    model, inputs = make(), batch(side)
    with torch.no_grad(), aniso.capture(model) as run:
        hidden = model(**inputs, output_hidden_states=True).hidden_states
    states = run.finished()
    assert len(states) == len(hidden) and run.layers[0] == "embeddings"
    keep = inputs["attention_mask"].bool().reshape(-1)
    # The last entry of decoders is after the final norm; the block's own output is before it.
    last = len(hidden) if make is bert else len(hidden) - 1
    for state, values in list(zip(states.values(), hidden, strict=True))[:last]:
        expected = reference.row_moments(values.reshape(-1, 16), keep)
        assert_moments(state.moments, expected)
        assert state.moments.masked_rows == 6


def test_several_calls_add_up():
    model, batches = bert(), [batch(), batch("left")]
    with torch.no_grad(), aniso.capture(model, "encoder.layer.1") as run:
        hidden = [model(**b).last_hidden_state for b in batches]
    rows = torch.cat([h[b["attention_mask"].bool()] for h, b in zip(hidden, batches, strict=True)])
    state = run.states["encoder.layer.1"]
    close(about_origin(state)["gram_raw"], reference.gram(rows), len(rows), "", 2.0**-36)
    assert run.compute()["encoder.layer.1"].counts["rows"] == len(rows)


def test_tokens_left_out_by_id():
    model, inputs = bert(), batch()
    inputs["input_ids"][:, 0] = 1
    with torch.no_grad(), aniso.capture(model, "embeddings", exclude_token_ids=[1]) as run:
        model(**inputs)
    assert run.states["embeddings"].moments.rows == 21 - 6 - 3
    with aniso.capture(model, exclude_token_ids=[1]), pytest.raises(aniso.InputError, match="ids"):
        model(inputs_embeds=torch.randn(1, 3, 16))


def test_special_tokens_of_the_real_model(minilm, demo_texts):
    texts = demo_texts[:20]
    counts = []
    for special in (False, True):
        run = aniso.capture(minilm.model, 0, exclude_special_tokens=special, gram=False)
        with run:
            run_texts(minilm, texts, batch_size=7)
        counts.append(run.states["embeddings"].moments.rows)
    assert counts[0] - counts[1] == 2 * len(texts)


def test_live_capture_equals_the_dump_it_wrote(minilm, demo_texts, tmp_path):
    with aniso.capture(minilm.model, save=tmp_path / "dump") as run:
        run_texts(minilm, demo_texts[:60])
    report = aniso.analyze(tmp_path / "dump", progress=False)
    live = run.compute()
    assert (
        list(report.layers)
        == list(live)
        == ["embeddings"] + [f"encoder.layer.{i}" for i in range(6)]
    )
    for name, layer in report.layers.items():
        assert layer.counts["rows"] == live[name].counts["rows"]
        for key, value in layer.metrics.items():
            rel = 1e-8 if key.startswith("rogue_") else 1e-10  # Σx̂_k² meets in float32
            assert value == pytest.approx(live[name].metrics[key], rel=rel), (name, key)
    for name, state in run.finished().items():
        dumped = aniso.LayerState(state.dim)
        for block in aniso.open_dump(tmp_path / "dump")[name].blocks():
            dumped.update(block.rows)
        expected = about_origin(dumped)
        for part, tensor in about_origin(state).items():
            # The dump has no masked rows; how far rows were rounded depends on the blocks: to 39
            # bits of the largest, and Σx̂_k², the last of the sums, in float32.
            if part not in ("counts", "gram_noise"):
                if part == "sums":
                    close(tensor[3], expected[part][3], 1, "Σx̂_k²", SPAN_SUMS)
                    tensor, expected[part] = tensor[:3], expected[part][:3]
                scale = tensor.abs().max()
                assert (tensor - expected[part]).abs().max() <= 2.0**-36 * scale


def test_any_model_by_its_longest_list_of_blocks():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 8)
            self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(11))

        def forward(self, ids):
            x = self.table(ids)
            for block in self.blocks:
                x = block(x)
            return x

    net, ids = Net(), torch.randint(0, 10, (2, 5))
    with torch.no_grad(), aniso.capture(net) as run:
        net(ids)
    assert run.layers == ("embeddings", *(f"blocks.{i}" for i in range(11)))
    assert_moments(
        run.states["embeddings"].moments,
        reference.row_moments(net.table(ids).detach().flatten(0, 1)),
    )
    assert [p.name for p in hook_points(net, ["blocks.1*", 0])] == [
        "embeddings",
        "blocks.1",
        "blocks.10",
    ]


def test_encoder_decoder_has_both_stacks():
    config = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50)
    model = T5Model(config).eval()
    assert [p.name for p in hook_points(model)] == [
        "embeddings",
        "encoder.block.0",
        "encoder.block.1",
        "decoder.block.embeddings",
        "decoder.block.0",
        "decoder.block.1",
    ]


def test_hooks_are_gone_afterwards():
    model = bert()
    with aniso.capture(model) as run:
        model(**batch())
    rows = run.states["embeddings"].moments.rows
    model(**batch())
    assert run.states["embeddings"].moments.rows == rows
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("make", [bert, gpt2, llama])
def test_command_line_on_saved_models(make, minilm, tmp_path, capsys):
    """A folder of a model, encoder or decoder, without a padding token: states, files, a dump."""
    model = make()
    model.resize_token_embeddings(len(minilm.tokenizer))
    model.save_pretrained(tmp_path / "model")
    minilm.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("One short text.\n\nAnother, which is a little longer.\n")
    folders = {name: tmp_path / name for name in ("model", "out", "dump")}
    arguments = ["--text", str(tmp_path / "texts.txt"), "--exclude-special-tokens", "--json"]
    for option, name in (("--model", "model"), ("--out", "out"), ("--save", "dump")):
        arguments += [option, str(folders[name])]
    with pytest.raises(SystemExit) as ended:
        main(["capture", *arguments])
    assert ended.value.code == 0
    results = json.loads(capsys.readouterr().out)
    names = [layer["name"] for layer in results["layers"]]
    assert names[0] == "embeddings" and len(names) == 1 + model.config.num_hidden_layers
    dump = aniso.open_dump(folders["dump"])
    assert list(dump.layers) == names
    tokens = minilm.tokenizer.tokenize("One short text. Another, which is a little longer.")
    assert dump.rows == len(tokens) == results["layers"][0]["counts"]["rows"]
    assert (folders["out"] / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    "rules", [{}, {"exclude_special_tokens": True, "exclude_token_ids": (1996,)}]
)
def test_rows_that_do_not_fit_the_disk_are_refused_before_the_run(
    minilm, demo_texts, tmp_path, monkeypatch, rules
):
    def saved(free, folder):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr("aniso._files.shutil.disk_usage", lambda place: usage)
        options = CaptureOptions([0, 3], **rules)
        capture_texts(minilm, demo_texts[:5], {}, options, save=folder, progress=False)
        return aniso.open_dump(folder)

    dump = saved(1 << 60, tmp_path / "first")
    needed = sum(dump[name].bytes for name in dump.layers)
    sentence = (
        rf"the rows of {dump.rows} tokens in 2 layers take {needed / 1e3:.3g} kB, but the disk of "
        rf".*new.dump has {(needed - 1) / 1e3:.3g} kB free; make room"
    )
    with pytest.raises(aniso.InputError, match=sentence):
        saved(needed - 1, tmp_path / "new" / "dump")
    assert not (tmp_path / "new").exists()
    assert saved(needed, tmp_path / "new" / "dump").rows == dump.rows


def test_a_glob_means_layers_before_the_modules_inside_them(minilm, demo_texts):
    with aniso.capture(minilm.model, layers="encoder.layer.*") as run:
        run_texts(minilm, demo_texts[:4])
    assert list(run.compute()) == [f"encoder.layer.{i}" for i in range(6)]
    inside = hook_points(minilm.model, "encoder.layer.0.attention*")
    assert all(point.name.startswith("encoder.layer.0.attention") for point in inside)


def test_texts_cut_short_are_announced(minilm, demo_texts, tmp_path):
    short = TextModel(minilm.model, minilm.tokenizer, 8)
    options = CaptureOptions(gram=False)
    report = capture_texts(short, demo_texts[:5], {}, options, progress=False)
    assert report.notes == ("5 of 5 texts were cut to 8 tokens",)
    assert report.layers["embeddings"].counts["rows"] == 40


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "no CUDA device"),
        ({"device": "toaster"}, "there is no device 'toaster'"),
        ({"max_length": 2}, "needs at least 3"),
    ],
)
def test_models_are_refused_in_a_sentence(options, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(aniso.InputError, match=words):
        load_model(str(packaged_model()), **options)


def test_gradients_flow_through_a_captured_model():
    model = bert()
    with aniso.capture(model) as run:
        model(**batch()).last_hidden_state.sum().backward()
    assert model.embeddings.word_embeddings.weight.grad is not None
    assert run.compute()["embeddings"].counts["rows"] == 15


def test_refusals_are_one_sentence():
    model = bert()
    with pytest.raises(aniso.InputError, match=r"near names are encoder\.layer\.1"):
        aniso.capture(model, "encoder.layer.7")
    with pytest.raises(aniso.InputError, match="there are 3, from 0"):
        aniso.capture(model, 3)
    with pytest.raises(aniso.InputError, match="no list of blocks"):
        aniso.capture(nn.Linear(2, 2))
    with aniso.capture(model) as run:
        pass
    with pytest.raises(aniso.InputError, match="was not called"):
        run.compute()
    with aniso.capture(model, ["encoder", "encoder.layer.0.output"]) as run:
        model(**batch())
    assert len(run.compute()) == 2
    with aniso.capture(model), pytest.raises(aniso.InputError, match=r"\[batch, token\] masks"):
        model(input_ids=torch.ones(1, 3, dtype=torch.int64), attention_mask=torch.ones(1, 1, 3, 3))


def test_layer_that_does_not_run_is_not_counted_in_silence():
    model = bert()
    model.unused = nn.Linear(2, 2)
    with aniso.capture(model, ["unused", 0]) as run:
        model(**batch())
    with pytest.raises(aniso.InputError, match="layer unused did not run"):
        run.compute()


def test_packaged_weights_are_verified(tmp_path):
    assert (packaged_model() / "config.json").is_file()
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(aniso.InputError, match="has SHA-256"):
        verify_weights(tmp_path / "model.safetensors", "0" * 64)
    with pytest.raises(aniso.InputError, match="is missing"):
        verify_weights(tmp_path / "none", "0" * 64)
