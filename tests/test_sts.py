from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from scipy import stats

import aniso
from aniso import reference
from aniso.cli import main
from aniso.experiments import mean_vectors, read_sts, sts
from aniso.models import load_model, packaged_model

PAIRS = [
    (5.0, "A cat sleeps on the sofa.", "A cat is asleep on a couch."),
    (4.2, "He plays the guitar.", "A man is playing a guitar on stage."),
    (3.0, "The bank raised its rates.", "Interest rates rose again, said the central bank today."),
    (2.0, "She reads a book.", "She bought a newspaper."),
    (0.4, "Rain is expected tomorrow.", "The striker scored twice in the second half."),
    (0.0, "Two dogs run through snow.", "The committee adjourned without a vote."),
]
# Mean vectors of each side, one SVD per side, Spearman ×100 of the embeddings and six blocks.
PUBLISHED = {
    "plain": [55.6, 56.7, 56.1, 55.9, 59.6, 66.5, 82.0],
    "paper -0.6": [70.2, 68.8, 68.6, 70.7, 71.8, 74.6, 80.9],
    "continuous -0.6": [71.1, 69.7, 69.1, 70.8, 71.8, 74.5, 80.4],
}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.tsv"
    lines = [f"news\tmade\t2024\t{i}\t{s}\t{a}\t{b}" for i, (s, a, b) in enumerate(PAIRS)]
    path.write_text("\n".join(lines) + "\n")
    return path


def means_by_hand(loaded, texts):
    """Text by text, without padding, from the hidden states that transformers returns."""
    rows = []
    for text in texts:
        inputs = loaded.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            hidden = loaded.model(**inputs, output_hidden_states=True).hidden_states
        rows.append(torch.stack([h[0].mean(dim=0) for h in hidden]))
    return torch.stack(rows, dim=1)


def spearman_by_hand(a, b, scores):
    pairs = zip(a.double(), b.double(), strict=True)
    cosines = [float(x @ y / x.norm() / y.norm()) for x, y in pairs]
    return 100 * stats.spearmanr(cosines, scores).statistic


def test_equals_a_direct_computation(minilm, data):
    pairs = read_sts(data)
    assert pairs.scores == [s for s, _, _ in PAIRS] and pairs.second[1] == PAIRS[1][2]
    report = sts(minilm, pairs, {"model": "m"}, alphas=[-0.3], batch_size=4, progress=False)
    first, second = (means_by_hand(minilm, side) for side in (pairs.first, pairs.second))
    vectors = mean_vectors(minilm, pairs.first, batch_size=4)
    assert list(report.spearman) == list(vectors)
    transforms = {
        "plain": lambda x: x,
        "whitening": lambda x: aniso.Whitening()(x.double()),
        "paper -0.3": lambda x: reference.soft_decay(x, -0.3),
        "continuous -0.3": lambda x: reference.soft_decay(x, -0.3, "continuous"),
    }
    assert report.methods == list(transforms)
    for layer, name in enumerate(vectors):
        assert torch.allclose(vectors[name], first[layer], atol=1e-5)
        for method, f in transforms.items():
            true = spearman_by_hand(f(first[layer]), f(second[layer]), pairs.scores)
            assert report.spearman[name][method] == pytest.approx(true), (name, method)


def test_the_command_prints_and_writes(data, tmp_path, capsys):
    def run(*more):
        with pytest.raises(SystemExit) as ended:
            main(["experiment", "sts", "--data", str(data), *more])
        return ended.value.code, capsys.readouterr()

    options = ["--alpha", "-0.6", "--layers", "encoder.layer.[04]"]
    code, shown = run(*options, "--out", str(tmp_path / "o"))
    assert code == 0
    assert all(word in shown.out for word in ("plain", "whitening", "continuous -0.6", "sts.svg"))
    saved = json.loads((tmp_path / "o" / "sts.json").read_text())
    assert [layer["name"] for layer in saved["layers"]] == ["encoder.layer.0", "encoder.layer.4"]
    assert ElementTree.parse(tmp_path / "o" / "sts.svg").getroot().tag.endswith("svg")
    code, shown = run(*options, "--json")
    assert code == 0 and json.loads(shown.out) == saved
    assert run("--alpha", "-1.5")[0] == 2


def test_bad_files_are_named_by_line(tmp_path):
    path = tmp_path / "pairs.tsv"
    good = "g\tf\ty\t1\t2.5\ta\tb\n"
    for text, words in (
        (good + "g\tf\ty\t1\tno\ta\tb\n", "line 2: columns 5, 6 and 7"),
        (good + "2.5\ta\tb\n", "line 2: columns"),
        (good, "has 1 pairs"),
        ("", "has 0 pairs"),
    ):
        path.write_text(text)
        with pytest.raises(aniso.InputError, match=words):
            read_sts(path)
    with pytest.raises(aniso.InputError, match="cannot be read"):
        read_sts(tmp_path / "none.tsv")


def test_equal_scores_have_no_correlation(minilm, data):
    pairs = read_sts(data)
    same = type(pairs)(pairs.first, pairs.second, [1.0] * len(PAIRS))
    report = sts(minilm, same, {}, alphas=[], layers=[0], progress=False)
    assert report.results()["layers"][0]["spearman"] == {"plain": None, "whitening": None}
    assert report.table().row_count == 2


if "ANISO_STSB" in os.environ:

    def test_the_figures_of_the_real_set():
        """The STS benchmark's test split, at the path in ANISO_STSB."""
        loaded = load_model(str(packaged_model()))
        pairs = read_sts(Path(os.environ["ANISO_STSB"]))
        assert len(pairs.scores) == 1379
        report = sts(loaded, pairs, {}, alphas=[-0.6], progress=False)
        for method, published in PUBLISHED.items():
            found = [values[method] for values in report.spearman.values()]
            assert found == pytest.approx(published, abs=0.1), method
