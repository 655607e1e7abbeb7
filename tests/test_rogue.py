from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import aniso
from aniso import reference
from aniso.metrics import rogue_dimensions, rogue_share, without_dimensions


def rows_with_rogue_dimensions(n=60, d=12, dtype=torch.float64):
    x = torch.randn(n, d, dtype=torch.float64)
    x[:, 3] += 6
    x[:, 7] -= 3
    return x.to(dtype)


def off_diagonal(matrix):
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


def state_of(x):
    state = aniso.LayerState(x.shape[1])
    state.update(x)
    return state


def without(x, dims):
    state = state_of(x)
    return without_dimensions(state.moments, state.grams, dims)


def test_rogue_dimensions_are_the_largest_of_the_explicit_products():
    x = rows_with_rogue_dimensions()
    units = reference.directions(x)
    parts = torch.stack([off_diagonal(torch.outer(c, c)).mean() for c in units.T])
    order = parts.argsort(descending=True)
    moments = aniso.row_moments(x)
    found = rogue_dimensions(moments, 3)
    assert found.dims == tuple(order[:3].tolist()) and found.dims[:2] == (3, 7)
    np.testing.assert_allclose(found.contributions, parts[order[:3]], rtol=1e-12)
    mean = off_diagonal(units @ units.T).mean()
    metrics = state_of(x).compute().metrics
    for k in (1, 3, 10):
        expected = float(parts[order[:k]].sum() / mean)
        assert rogue_share(moments, k) == pytest.approx(expected, rel=1e-12)
        assert metrics[f"rogue_share_{k}"] == pytest.approx(expected, rel=1e-12)


def test_the_share_of_a_mean_that_is_not_positive_is_nan():
    assert math.isnan(rogue_share(aniso.row_moments(torch.tensor([[1.0, 0], [-1.0, 0]])), 1))
    assert math.isnan(rogue_share(aniso.row_moments(torch.eye(4)), 1))
    assert math.isnan(rogue_share(aniso.row_moments(torch.ones(1, 4)), 1))
    assert rogue_share(aniso.row_moments(torch.ones(5, 4)), 10) == pytest.approx(1)


@pytest.mark.parametrize("dims", [[], [3], [3, 7], [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]])
def test_partial_products_against_all_pairs(dims):
    x = rows_with_rogue_dimensions()
    kept = [k for k in range(12) if k not in dims]
    partial = reference.directions(x)[:, kept]
    products = off_diagonal(partial @ partial.T)
    found = without(x, dims)
    assert found.partial_mean == pytest.approx(float(products.mean()), rel=1e-10)
    var = float(products.var(correction=0))
    assert found.partial_var_low - 1e-12 <= var <= found.partial_var_high + 1e-12
    assert 0 <= found.partial_var_high - found.partial_var_low <= 1 / (4 * 59) + 1e-12
    assert found.kept_energy == pytest.approx(float((partial**2).sum(dim=1).mean()), rel=1e-12)
    expected = reference.singular_values(x[:, kept])
    np.testing.assert_allclose(found.singular_values, expected, rtol=1e-9)


def test_nothing_left_out_is_the_cosine_itself():
    x = rows_with_rogue_dimensions()
    mean, var = reference.cosine_mean_var(x)
    found = without(x, [])
    assert found.partial_mean == pytest.approx(mean, rel=1e-12)
    assert found.partial_var_low == pytest.approx(var, rel=1e-10)
    assert found.partial_var_high == pytest.approx(var, rel=1e-10)


@pytest.mark.parametrize(
    "dims", [[], [3], [0, 1, 2, *range(4, 40)]], ids=["none", "rogue", "others"]
)
def test_energy_of_float32_rows_to_a_part_of_itself(dims):
    x = torch.randn(300, 40)
    x[:, 3] *= 1e4
    found = without_dimensions(aniso.row_moments(x), None, dims).kept_energy
    units = reference.directions(x.double())
    units[:, dims] = 0
    expected = float((units**2).sum(dim=1).mean())
    assert found == pytest.approx(expected, rel=1e-6 if dims else 1e-15)


def test_partial_products_are_no_cosines():
    x = rows_with_rogue_dimensions()
    kept = [k for k in range(12) if k not in (3, 7)]
    mean, var = reference.cosine_mean_var(x[:, kept])
    found = without(x, [3, 7])
    assert found.kept_energy < 0.5 and found.partial_var_high < var / 3
    assert aniso.cosine_stats(x, without=[3, 7]).var == pytest.approx(var, rel=1e-10)
    assert aniso.cosine_stats(x, without=[3, 7]).mean == pytest.approx(mean, rel=1e-9)


def test_without_grams():
    found = without_dimensions(aniso.row_moments(rows_with_rogue_dimensions()), None, [3])
    assert found.partial_var_low is found.partial_var_high is found.singular_values is None
    assert not math.isnan(found.partial_mean)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("left_out", [1, 2, (7,), [0, 3, 11], np.array([3, 7])])
def test_cosines_of_the_reduced_rows(dtype, left_out):
    x = rows_with_rogue_dimensions(dtype=dtype)
    found = aniso.cosine_stats(x, without=left_out)
    if isinstance(left_out, int):
        dims = rogue_dimensions(aniso.row_moments(x), left_out).dims
        assert dims == (3, 7)[:left_out]
    else:
        dims = tuple(int(k) for k in left_out)
    assert found.without == dims
    kept = [k for k in range(12) if k not in dims]
    plain = aniso.cosine_stats(x[:, kept].contiguous())
    mean, var = reference.cosine_mean_var(x[:, kept])
    tolerance = 1e-5 if dtype == torch.bfloat16 else 1e-9
    assert found.mean == pytest.approx(mean, rel=tolerance, abs=tolerance)
    assert found.var == pytest.approx(var, rel=tolerance)
    assert found.relative_drift == pytest.approx(plain.relative_drift, rel=tolerance)
    shares = torch.as_tensor(found.contributions)
    assert len(shares) == 12 and (shares[list(dims)] == 0).all()
    assert float(shares.sum()) == pytest.approx(found.mean, rel=1e-9, abs=1e-12)


def test_reduced_rows_in_many_blocks(monkeypatch):
    import sys

    x = rows_with_rogue_dimensions(500)
    mask = torch.rand(500) > 0.3
    whole = aniso.cosine_stats(x, mask=mask, without=2)
    monkeypatch.setattr(sys.modules["aniso.metrics.cosine_stats"], "_BLOCK_ELEMENTS", 12 * 7)
    pieces = aniso.cosine_stats(x, mask=mask, without=2)
    assert pieces.mean == pytest.approx(whole.mean, rel=1e-12)
    assert pieces.var == pytest.approx(whole.var, rel=1e-10)
    assert pieces.mask_rows == whole.mask_rows == int((~mask).sum())


def test_rows_that_lose_all_they_have_count_as_zero_rows():
    x = rows_with_rogue_dimensions()
    x[5] = 0
    x[6] = 0
    x[6, 3] = 2
    found = aniso.cosine_stats(x, without=[3])
    assert found.zero_rows == 2
    keep = [i for i in range(60) if i not in (5, 6)]
    kept = x[keep][:, [k for k in range(12) if k != 3]]
    assert found.mean == pytest.approx(reference.cosine_mean_var(kept)[0], rel=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_not_finite_in_a_removed_dimension_stay_out(value):
    x = rows_with_rogue_dimensions()
    x[4, 3] = value
    with pytest.raises(aniso.InputError, match="the first is row 4"):
        aniso.cosine_stats(x, without=[3])
    found = aniso.cosine_stats(x, without=[3], nonfinite="skip")
    assert (found.rows, found.nonfinite_rows) == (59, 1)


@pytest.mark.parametrize(
    "left_out, message",
    [
        (0, "leave out 1 to 11"),
        (12, "leave out 1 to 11"),
        ([12], "no dimension 12"),
        ([-1], "no dimension -1"),
        (range(12), "keep at least one"),
        (["a"], "pass integers"),
        (1.5, "pass integers"),
    ],
)
def test_refusals(left_out, message):
    x = rows_with_rogue_dimensions()
    with pytest.raises(aniso.InputError, match=message):
        aniso.cosine_stats(x, without=left_out)
    with pytest.raises(aniso.InputError, match="pass 1 to 12"):
        rogue_dimensions(aniso.row_moments(x), 13)
