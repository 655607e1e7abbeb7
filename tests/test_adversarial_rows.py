"""Every op of pairwise cosines on rows that are hard in one way each, in every dtype."""

from __future__ import annotations

import math

import pytest
import torch
from groups import assert_sums, reference_sums, runs_and_outputs
from rows import DTYPES, assert_moments, close

import aniso
from aniso import _native, reference
from aniso.moments import Grams
from aniso.ops import cross_gram_into, gram_into, group_products, pair_histogram_into
from aniso.ops._runs import runs_of

ERROR = 2e-6  # of a cosine
# What the matrix unit rounds (see test_gram.py), relative to the largest entry.
ROUNDED = {torch.float32: 2.0**-36, torch.float16: 2.0**-21, torch.bfloat16: 2.0**-17}


def _noise(n, d):
    return torch.randn(n, d, dtype=torch.float64) + 0.3


def _duplicates():
    return _noise(10, 33).repeat(8, 1)


def _antipodes():
    # Not all of them: entries of a sum are compared with the largest, which must not vanish.
    x = _noise(60, 33)
    return torch.cat([x, -x[:30]])


def _sink():
    x = _noise(80, 33)
    x[50] *= 2.0**13
    return x


KINDS = {
    "no rows": lambda: _noise(0, 33),
    "one row": lambda: _noise(1, 33),
    "two rows": lambda: _noise(2, 33),
    "one column": lambda: _noise(90, 1),
    "7 columns": lambda: _noise(90, 7),
    "4097 columns": lambda: _noise(70, 4097),
    "duplicates": _duplicates,
    "antipodes": _antipodes,
    "sink": _sink,
    "tiny": lambda: _noise(70, 33) * 1e-30,
    "huge": lambda: _noise(70, 33) * 1e30,
    "squares beyond float16": lambda: _noise(70, 33).clamp(-2, 2) * 3e4,
    "zeros among them": lambda: _noise(70, 33) * (torch.arange(70) % 3 > 0)[:, None],
}
OUT_OF_FLOAT16 = {"tiny", "huge"}
CASES = [
    (kind, dtype)
    for kind in KINDS
    for dtype in DTYPES
    if dtype != torch.float16 or kind not in OUT_OF_FLOAT16
]
every_case = pytest.mark.parametrize(("kind", "dtype"), CASES, ids=str)


def rows(kind, dtype):
    x = KINDS[kind]().to(dtype)
    assert torch.isfinite(x).all() and (kind == "zeros among them" or (x != 0).any(dim=1).all())
    return x


@every_case
def test_row_moments(kind, dtype):
    x = rows(kind, dtype)
    assert_moments(aniso.row_moments(x), reference.row_moments(x), dtype)


@every_case
@pytest.mark.parametrize("isa", ["matrix unit", _native.isa])
def test_gram(kind, dtype, isa):
    x, sums = rows(kind, dtype), Grams.zeros(KINDS[kind]().shape[1])
    arguments = (x, None, *sums.tensors())
    if isa == _native.isa:
        _native.gram_cpu(*arguments, threads=2, isa=isa)
    else:
        gram_into(*arguments)
    tolerance = ROUNDED.get(dtype) if isa == "matrix unit" else None
    close(sums.raw, reference.gram(x), len(x), "raw", tolerance)
    close(sums.unit, reference.gram(x, normalize=True), len(x), "unit", tolerance)


@every_case
@pytest.mark.parametrize("split", [False, True])
def test_pair_histogram(kind, dtype, split):
    """All pairs of the rows, or of every third row with the others."""
    x = rows(kind, dtype)
    x = x[(x != 0).any(dim=1)]
    third = torch.arange(len(x)) % 3 == 0
    a, b = (x[third], x[~third]) if split else (x, None)
    counts = torch.zeros(302, dtype=torch.int64)
    extremes = torch.tensor([math.inf, -math.inf], dtype=torch.float64)
    pair_histogram_into(a, b, -1.0, 1.0, counts, extremes)
    cosines = reference.pair_cosines(a, b).flatten().clamp(-1, 1).sort().values
    edges = -1 + 2 / 300 * torch.arange(300, dtype=torch.float64)
    below = counts[:301].cumsum(0)[:300]
    assert int(counts.sum()) == len(cosines)
    assert (below >= torch.searchsorted(cosines, edges - ERROR)).all()
    assert (below <= torch.searchsorted(cosines, edges + ERROR)).all()
    expected = cosines[[0, -1]] if len(cosines) else torch.tensor([math.inf, -math.inf])
    torch.testing.assert_close(extremes, expected.double(), rtol=0.0, atol=ERROR)


@every_case
def test_group_moments(kind, dtype):
    x = rows(kind, dtype)
    for ids in (torch.arange(len(x)) // 4, torch.randint(0, 5, (len(x),))):
        runs, outputs = runs_and_outputs(x, ids, {"sums", "unit_sums"})
        _native.group_moments_cpu(x, runs.tensors(), outputs, 1.0, threads=2, isa=_native.isa)
        assert_sums(outputs, reference_sums(x, ids))


@every_case
def test_group_products(kind, dtype):
    x = rows(kind, dtype)
    ids = torch.arange(len(x)) // 4
    counts, products, total = group_products(x, runs_of(ids, None))
    expected = reference_sums(x, ids)
    assert counts.tolist() == expected[0].tolist()
    close(products[:, 0], expected[4][:, 0], 16 * x.shape[1], "‖ŝ‖²")
    close(total, expected[3].sum(0), len(x), "total")


@every_case
def test_cross_gram(kind, dtype):
    x = rows(kind, dtype)
    y = x.flip(0)
    raw, unit = torch.zeros(2, x.shape[1], x.shape[1], dtype=torch.float64)
    cross_gram_into(x, y, None, raw, unit)
    close(raw, reference.cross_gram(x, y), len(x), "raw")
    close(unit, reference.cross_gram(x, y, normalize=True), len(x), "unit")
