from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from scipy import stats

import aniso
from aniso import reference
from aniso.cli import main
from aniso.experiments import token_uniformity

TEXTS = ["A cat sleeps.", "Rain is expected over the whole of the north tomorrow.", "No."]


def by_hand(hidden):
    """Of one sequence [t, d]: skewness, median, EV_1, mean cosine, share of σ/σ₁ up to 1/2."""
    s = torch.linalg.svdvals(hidden.double())
    relative = s / s[0]
    rows = torch.nn.functional.normalize(hidden.double(), dim=1)
    t = len(rows)
    cosine = float((rows @ rows.T).sum() - t) / (t * (t - 1))
    half = float((relative <= 0.5).double().mean())
    skewness = stats.skew(relative.numpy())
    median = float(relative.quantile(0.5))
    return [skewness, median, float(s[0] ** 2 / s.square().sum()), cosine, half]


@pytest.mark.parametrize("mode", ["paper", "continuous"])
def test_equals_a_direct_computation(minilm, mode):
    options = {"alpha": -0.3, "mode": mode, "batch_size": 2, "progress": False}
    report = token_uniformity(minilm, TEXTS, {"model": "m"}, **options)
    sides = {"before": lambda x: x, "after": lambda x: reference.soft_decay(x, -0.3, mode)}
    hidden = []
    for text in TEXTS:
        inputs = minilm.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            hidden.append(minilm.model(**inputs, output_hidden_states=True).hidden_states)
    for side, f in sides.items():
        layers = getattr(report, side)
        assert len(layers) == 7
        for layer, found in enumerate(layers.values()):
            expected = torch.tensor([by_hand(f(states[layer][0])) for states in hidden]).mean(0)
            keys = ("sv_skewness", "sv_median_ratio", "explained_variance_1", "token_uniformity")
            numbers = [found.metrics[key] for key in keys] + [found.cdf[128]]
            assert numbers == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-4), (side, layer)


def test_soft_decay_flattens_every_layer(minilm, demo_texts):
    report = token_uniformity(minilm, demo_texts[:20], {}, mode="continuous", progress=False)
    for name, before in report.before.items():
        after = report.after[name]
        assert after.metrics["sv_median_ratio"] > before.metrics["sv_median_ratio"], name
        assert after.metrics["explained_variance_1"] < before.metrics["explained_variance_1"], name
        assert sorted(after.cdf) == after.cdf and after.cdf[-1] == pytest.approx(1)


def test_the_command_prints_and_writes(tmp_path, capsys):
    text = tmp_path / "texts.txt"
    text.write_text("\n".join(TEXTS))

    def command(*more):
        arguments = ["--text", str(text), "--layers", "encoder.layer.[05]", *more]
        with pytest.raises(SystemExit) as ended:
            main(["experiment", "token-uniformity", *arguments])
        return ended.value.code, capsys.readouterr()

    code, shown = command("--out", str(tmp_path / "o"))
    assert code == 0 and "TokenUni" in shown.out and "token-uniformity.svg" in shown.out
    saved = json.loads((tmp_path / "o" / "token-uniformity.json").read_text())
    assert [layer["name"] for layer in saved["layers"]] == ["encoder.layer.0", "encoder.layer.5"]
    assert saved["provenance"]["text"] == str(text)
    svg = ElementTree.parse(tmp_path / "o" / "token-uniformity.svg")
    assert svg.getroot().tag.endswith("svg")
    code, shown = command("--json", "--mode", "continuous", "--alpha", "-0.2")
    assert code == 0 and json.loads(shown.out)["provenance"]["alpha"] == -0.2
    code, shown = command("--alpha", "0.5")
    assert code == 2 and shown.err.startswith("aniso: alpha is 0.5")


def test_what_no_sequence_has_is_null(minilm):
    class OneToken:
        """A tokenizer of one token per text, without special ones."""

        def __call__(self, texts, **options):
            ids = torch.full((len(texts), 1), 7)
            return Inputs(input_ids=ids) if options.get("padding") else {"input_ids": ids.tolist()}

    class Inputs(dict):
        def to(self, device):
            return self

    loaded = type(minilm)(minilm.model, OneToken(), 8)
    report = token_uniformity(loaded, ["a", "b"], {}, layers=[0], progress=False)
    (found,) = report.before.values()
    assert math.isnan(found.metrics["token_uniformity"])
    (layer,) = report.results()["layers"]
    assert layer["before"]["metrics"]["sv_skewness"] is None
    assert layer["before"]["metrics"]["explained_variance_1"] == pytest.approx(1)
    assert report.table().row_count == 1


def test_layers_are_refused_in_a_sentence(minilm):
    with pytest.raises(aniso.InputError, match="near names"):
        token_uniformity(minilm, TEXTS, {}, layers="encoder.layer.7")
