from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

import aniso
from aniso.cli import main
from aniso.experiments import layers
from aniso.models import read_inputs

TEXTS = ["A cat sleeps.", "Rain is expected over the whole of the north tomorrow.", "No."]
SIZES = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}


def vit():
    config = ViTConfig(num_attention_heads=2, image_size=16, patch_size=8, **SIZES)
    return ViTModel(config, add_pooling_layer=False).eval()


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["experiment", "layers", *(str(argument) for argument in arguments)])
    return ended.value.code, capsys.readouterr()


def test_equals_a_direct_computation(minilm):
    report = layers({"m": minilm}, TEXTS, {}, batch_size=2, progress=False)
    hidden = []
    for text in TEXTS:
        inputs = minilm.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            hidden.append(minilm.model(**inputs, output_hidden_states=True).hidden_states)
    (found,) = report.models.values()
    assert len(found) == 7
    for layer, metrics in enumerate(found.values()):
        rows = torch.cat([states[layer][0] for states in hidden]).double()
        n, directions = len(rows), torch.nn.functional.normalize(rows, dim=1)
        cosine = (float((directions @ directions.T).sum()) - n) / (n * (n - 1))
        assert metrics["mean_cosine"] == pytest.approx(cosine, rel=1e-4, abs=1e-5)
        drift = float(rows.mean(0).norm() / rows.norm(dim=1).mean())
        assert metrics["relative_drift"] == pytest.approx(drift, rel=1e-4)


def test_several_models_on_text(minilm, tmp_path, capsys):
    config = BertConfig(num_attention_heads=2, vocab_size=30522, **SIZES)
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "model")
    minilm.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    options = ["--text", tmp_path / "texts.txt", "--model", tmp_path / "model"]
    options += ["--model", minilm.model.name_or_path]
    code, shown = command(capsys, *options, "--out", tmp_path / "o")
    assert code == 0 and "layers.svg" in shown.out
    saved = json.loads((tmp_path / "o" / "layers.json").read_text())
    assert [len(model["layers"]) for model in saved["models"]] == [3, 7]
    assert ElementTree.parse(tmp_path / "o" / "layers.svg").getroot().tag.endswith("svg")
    code, shown = command(capsys, *options, "--json")
    assert code == 0 and json.loads(shown.out) == saved


def test_images_without_a_tokenizer(tmp_path, capsys):
    model, pixels = vit(), torch.randn(5, 3, 16, 16)
    model.save_pretrained(tmp_path / "model")
    save_file({"pixel_values": pixels}, tmp_path / "images.safetensors")
    options = ["--inputs", tmp_path / "images.safetensors", "--model", tmp_path / "model"]
    code, shown = command(capsys, *options, "--batch-size", "2", "--json")
    assert code == 0
    (saved,) = json.loads(shown.out)["models"]
    with torch.no_grad():
        hidden = model(pixels, output_hidden_states=True).hidden_states[1].flatten(0, 1)
    expected = aniso.cosine_stats(hidden).mean
    assert saved["layers"][1]["metrics"]["mean_cosine"] == pytest.approx(expected, rel=1e-5)
    save_file({"pixels": pixels}, tmp_path / "images.safetensors")
    code, shown = command(capsys, *options)
    assert code == 2 and "ViTModel takes no pixels; name the tensors" in shown.err
    assert command(capsys, *options, "--text", tmp_path / "t")[0] == 2


def test_inputs_are_refused_in_a_sentence(tmp_path):
    path = tmp_path / "inputs.safetensors"
    with pytest.raises(aniso.InputError, match="cannot be read"):
        read_inputs(path)
    path.write_bytes(b"nothing")
    with pytest.raises(aniso.InputError, match="cannot be read"):
        read_inputs(path)
    save_file({"a": torch.zeros(2), "b": torch.zeros(3)}, path)
    with pytest.raises(aniso.InputError, match="one entry per input"):
        read_inputs(path)
    save_file({}, path)
    with pytest.raises(aniso.InputError, match="has no tensors"):
        read_inputs(path)
    with pytest.raises(aniso.InputError, match="ViTModel without a tokenizer takes no texts"):
        layers({"v": vit()}, TEXTS, {}, progress=False)
