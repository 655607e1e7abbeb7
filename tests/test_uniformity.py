from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aniso
from aniso.metrics import PairDesign, uniformity, uniformity_bounds


def of(cosines, weights=None):
    return math.log(np.average(np.exp(-4 * (1 - np.asarray(cosines))), weights=weights))


@settings(max_examples=200, deadline=None)
@given(
    cosines=st.lists(st.floats(-1, 1), min_size=1, max_size=20),
    squeeze=st.floats(1e-4, 1),
    centre=st.floats(-1, 1),
)
def test_bounds_hold_for_every_distribution(cosines, squeeze, centre):
    c = np.clip(centre + squeeze * np.array(cosines), -1, 1)
    low, high = uniformity_bounds(c.mean(), c.var())
    slack = 1e-9
    assert -4 * (1 - c.mean()) - slack <= low  # Jensen's bound is never the better one
    assert low - slack <= of(c) <= high + slack


@pytest.mark.parametrize("other", [-0.9, 0.0, 0.7, 0.99])
@pytest.mark.parametrize("weight", [0.001, 0.3, 0.9])
@pytest.mark.parametrize("end", [-1.0, 1.0])
def test_bounds_touch_at_two_point_distributions(other, weight, end):
    c, p = np.array([end, other]), np.array([weight, 1 - weight])
    mean = p @ c
    bounds = uniformity_bounds(mean, p @ (c - mean) ** 2)
    touching = bounds.low if end == -1 else bounds.high
    assert touching == pytest.approx(of(c, p), rel=1e-9, abs=1e-12)
    assert bounds.high > bounds.low


@pytest.mark.parametrize("mean", [-1.0, -0.5, 0.0, 0.99999, 1.0])
def test_without_variance_both_bounds_are_jensen_s(mean):
    assert uniformity_bounds(mean, 0.0) == pytest.approx((-4 * (1 - mean),) * 2, abs=1e-15)


def test_bounds_are_tight_where_cosines_are_narrow():
    c = np.random.default_rng(0).normal(0.97, 0.005, 10_000)
    low, high = uniformity_bounds(c.mean(), c.var())
    assert low <= of(c) <= high
    assert -4 * (1 - c.mean()) < low and high - low < 2e-4


@pytest.mark.parametrize("mean, var", [(1.1, 0.0), (0.9, 0.5), (0.0, -0.1), (math.nan, 0.1)])
def test_impossible_moments_are_refused(mean, var):
    with pytest.raises(aniso.InputError, match="no cosines have mean"):
        uniformity_bounds(mean, var)


def test_the_estimate_converges_to_the_definition_as_bins_get_finer():
    c = np.random.default_rng(0).uniform(-0.3, 0.9, 5000)
    design = PairDesign(101, population=101)
    for bins in (10, 100, 10_000):
        counts, edges = np.histogram(c, bins, (-1, 1))
        value, low, high = uniformity(counts, edges, design)
        assert low <= of(c) <= high and low <= value <= high
        assert high - low == pytest.approx(8 / bins, rel=1e-6)
        # Curvature within a bin, and where 5000 values happen to lie in theirs.
        assert abs(value - of(c)) < 8 / bins**2 + 0.2 / bins
