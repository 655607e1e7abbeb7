from __future__ import annotations

import math

import pytest
import torch

import aniso
from aniso import reference
from aniso.metrics import lsds, rbf_distance, token_uniformity, uniformity_bounds
from aniso.metrics import neighbourhood as room


@pytest.fixture(params=[1 << 23, 100], ids=["one block", "many blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(room, "_BLOCK_PAIRS", request.param)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [1, 2, 5, 13, 63])
def test_lsds_equals_the_reference(n, dtype, blocks):
    # Far from the origin; in bfloat16 that would make rows equally far, and neighbours arbitrary.
    x = (0.1 * torch.randn(n, 7) + (0 if dtype == torch.bfloat16 else 50)).to(dtype)
    y = torch.randn(n, 4).to(dtype)
    for k in (1, 12):
        found = lsds(x, y, neighbours=k)
        assert found == pytest.approx(reference.lsds(x, y, k), rel=1e-10)
    keep = torch.rand(n) < 0.6
    if keep.any():
        assert lsds(x, y, mask=keep) == pytest.approx(lsds(x[keep], y[keep]), rel=1e-12)


def test_lsds_of_duplicates_counts_them_as_neighbours():
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]])
    y = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    assert lsds(x, y, neighbours=1) == pytest.approx(5 / 3)


@pytest.mark.parametrize("t", [0.5, 2.0])
@pytest.mark.parametrize("n", [2, 63])
def test_rbf_distance_over_every_pair(n, t, blocks):
    x = torch.randn(n, 9) + 1
    cosines = reference.pair_cosines(x)
    true = math.log(float(torch.exp(-2 * (1 - cosines) / t).mean()))
    assert rbf_distance(x, t=t) == pytest.approx(true, abs=1e-12)
    with_zero = torch.cat([x, torch.zeros(1, 9)])
    assert rbf_distance(1e30 * with_zero.double(), t=t) == pytest.approx(true, abs=1e-12)
    assert rbf_distance(x, t=t) >= -2 / t * (1 - float(cosines.mean())) - 1e-12


def test_rbf_distance_lies_within_the_bounds_of_uniformity():
    x = torch.randn(300, 8) + 0.5
    stats = aniso.cosine_stats(x)
    bounds = uniformity_bounds(stats.mean, stats.var)
    assert bounds.low <= rbf_distance(x) <= bounds.high


def test_token_uniformity_sentence_by_sentence():
    hidden = torch.randn(4, 6, 5) + 1
    mask = torch.arange(6) < torch.tensor([[6], [4], [2], [1]])
    sentences = torch.arange(4)[:, None].expand(4, 6)
    found = token_uniformity(hidden[mask], sentences[mask])
    means = [float(reference.pair_cosines(hidden[i, mask[i]]).mean()) for i in range(3)]
    assert found == pytest.approx(sum(means) / 3, rel=1e-9)
    flat = token_uniformity(hidden.flatten(0, 1), sentences.flatten(), mask=mask.flatten())
    assert flat == pytest.approx(found, rel=1e-12)


def test_soft_decay_lowers_token_uniformity():
    x = torch.randn(40, 32) + 3
    y = aniso.soft_decay(x)
    sentence = torch.zeros(40, dtype=torch.int64)
    assert token_uniformity(y, sentence) < token_uniformity(x, sentence)
    assert rbf_distance(y) < rbf_distance(x)


def test_refusals_and_empties():
    x = torch.randn(4, 3)
    assert math.isnan(rbf_distance(x[:1])) and math.isnan(lsds(x[:0], x[:0]))
    assert lsds(x[:1], x[:1]) == pytest.approx(float(x[0].norm()))
    for call in (
        lambda: rbf_distance(x, t=0.0),
        lambda: lsds(x, x, t=-1.0),
        lambda: lsds(x, x, neighbours=0),
        lambda: lsds(x, x[:2]),
        lambda: rbf_distance(x.index_fill(0, torch.tensor([2]), math.nan)),
        lambda: lsds(x, x.index_fill(0, torch.tensor([2]), math.nan)),
    ):
        with pytest.raises(aniso.InputError):
            call()
