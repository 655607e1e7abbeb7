from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch

import aniso
from aniso.cli import main
from aniso.experiments import BlockSize, untrained_block
from aniso.experiments.untrained_block import _bert_block, _point

# BERT's width: in 64 dimensions LayerNorm's projection outweighs what attention adds.
WIDE = BlockSize(sequences=2, tokens=96, vocabulary=500)
TINY = ["--dim", "16", "--heads", "2", "--sequences", "2", "--tokens", "9", "--bias-norm", "0"]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_published_shapes(seed):
    report = untrained_block(size=WIDE, seed=seed, progress=False)
    points = report.points
    assert [p.bias_norm for p in points] == sorted(p.bias_norm for p in points)
    assert all(p.cosine_out >= p.cosine_in for p in points)
    # The last norm of the block fixes ‖T(x + b)‖ = √d; ‖x + b‖² is N² + 0.02² d in the mean.
    (crossing,) = report.crossings
    assert crossing == pytest.approx(math.sqrt(768 - 0.02**2 * 768), rel=1e-2)
    largest, smallest = [p.softmax_max for p in points], [p.softmax_min for p in points]
    assert largest == sorted(largest) and largest[-1] > 1.5 * largest[0]
    assert smallest == sorted(smallest, reverse=True)


def test_every_number_by_hand():
    size = BlockSize(dim=24, heads=3, sequences=2, tokens=7, vocabulary=9)
    block = _bert_block(size, torch.Generator().manual_seed(1)).double()
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    point = _point(block, x, 3.0, 3)
    with torch.no_grad():
        behind = block(x)
        weights = block.self_attn(x, x, x, average_attn_weights=False)[1]
    for states, cosine, norm in (
        (x, point.cosine_in, point.norm_in),
        (behind, point.cosine_out, point.norm_out),
    ):
        rows = states.flatten(0, 1)
        cosines = torch.nn.functional.cosine_similarity(rows[:, None], rows, dim=-1)
        assert cosine == pytest.approx(float(cosines.sum() - 14) / (14 * 13), abs=1e-12)
        assert norm == pytest.approx(float(rows.norm(dim=1).mean()))
    assert point.softmax_max == pytest.approx(float(weights.amax(-1).mean()))
    assert point.softmax_min == pytest.approx(float(weights.amin(-1).mean()))
    query, key, _ = block.self_attn.in_proj_weight.chunk(3)
    heads = [
        (x @ query.T)[..., i : i + 8] @ (x @ key.T)[..., i : i + 8].mT / math.sqrt(8)
        for i in (0, 8, 16)
    ]
    logits = torch.stack(heads).detach()
    assert point.logit_mean == pytest.approx(float(logits.mean()))
    assert point.logit_std == pytest.approx(float(logits.std(correction=0)))
    assert (point.logit_min, point.logit_max) == (float(logits.min()), float(logits.max()))


def test_the_command_prints_and_writes(tmp_path, capsys):
    def command(*more):
        with pytest.raises(SystemExit) as ended:
            main(["experiment", "untrained-block", *TINY, *more])
        return ended.value.code, capsys.readouterr()

    code, shown = command("--bias-norm", "9", "--out", str(tmp_path))
    assert code == 0 and "N*" in shown.out and "untrained-block.svg" in shown.out
    saved = json.loads((tmp_path / "untrained-block.json").read_text())
    assert [p["bias_norm"] for p in saved["points"]] == [0, 9] and len(saved["crossings"]) == 1
    assert ElementTree.parse(tmp_path / "untrained-block.svg").getroot().tag.endswith("svg")
    code, shown = command("--bias-norm", "9", "--json")
    assert code == 0 and json.loads(shown.out) == saved
    assert command("--bias-norm", "-1")[0] == 2


@pytest.mark.parametrize(
    ("norms", "size", "words"),
    [
        ([], BlockSize(), "no bias norm was given"),
        ([1.0, math.nan], BlockSize(), "bias norm nan was given"),
        ([1.0], BlockSize(tokens=0), "tokens is 0"),
        ([1.0], BlockSize(heads=5), "no multiple of heads 5"),
    ],
)
def test_refusals_are_one_sentence(norms, size, words):
    with pytest.raises(aniso.InputError, match=words):
        untrained_block(norms, size=size)
