from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import erfc

import aniso
from aniso.metrics import (
    PairDesign,
    distribution_band,
    mean_interval,
    quantile_interval,
    uniformity,
    within_counts,
)

TIMES = 1000
QUANTILES = (0.01, 0.5, 0.99)
EDGES = np.linspace(-1, 1, 1001)


@dataclass
class Population:
    """All cosines, the documents that rows lie in (or none), and how many rows a sample has."""

    cosines: np.ndarray
    size: int
    documents: np.ndarray | None = None

    def __post_init__(self):
        upper = np.triu_indices(len(self.cosines), 1)
        self.bins = np.digitize(self.cosines, EDGES[1:-1])
        pairs = self.cosines[upper]
        self.mean = pairs.mean()
        self.quantiles = np.quantile(pairs, QUANTILES, method="inverted_cdf")
        self.uniformity = math.log(np.exp(-4 * (1 - pairs)).mean())
        self.shares = np.bincount(self.bins[upper], minlength=1000) / len(pairs)

    def sample(self, seed):
        """The pairs of one sample: their bins and cosines, whether within a document, design."""
        # One column, the row's own number: what is sampled is read off the sample.
        numbers = torch.arange(1, len(self.cosines) + 1, dtype=torch.float64)[:, None]
        drawn = aniso.RowSample(self.size, 1, seed=seed)
        drawn.update(numbers, documents=self.documents)
        rows = drawn.rows[:, 0].long().numpy() - 1
        first, second = np.triu_indices(len(rows), 1)
        labels = drawn.documents.numpy()
        pairs = rows[first], rows[second]
        return (
            self.bins[pairs],
            self.cosines[pairs],
            labels[first] == labels[second],
            drawn.design,
        )


def directions(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cosines_of(x):
    return (directions(x) @ directions(x).T).clip(-1, 1)


def population(name):
    rng = np.random.default_rng(7)
    if name == "isotropic":
        return Population(cosines_of(rng.standard_normal((400, 24))), 80)
    if name == "anisotropic":
        x = rng.standard_normal((400, 24)) * rng.uniform(0.02, 0.3, (400, 1))
        x[:, 0] += 1
        return Population(cosines_of(x), 80)
    sizes = rng.integers(3, 6, 150)
    documents = np.repeat(np.arange(150), sizes)
    centre = np.where(np.arange(150) < 45, 1.0, -1.0)[documents]
    topic = rng.standard_normal((150, 24))[documents]
    x = 0.12 * rng.standard_normal((sizes.sum(), 24)) + 0.05 * topic
    x[:, 0] += centre
    return Population(cosines_of(x), 320, documents)


def intervals(histogram, cosines, within, design):
    """The estimates of one sample, and all its intervals, by name."""
    weights = np.where(within, design.within_weight, 1.0)
    mean = np.average(cosines, weights=weights)
    var = np.average((cosines - mean) ** 2, weights=weights)
    value, *spread = uniformity(histogram[0], EDGES, design, within=histogram[1])
    estimates = {"mean": mean, "uniformity": value}
    found = {"mean": mean_interval(mean, var, design), "uniformity": tuple(spread)}
    for q in QUANTILES:
        found[f"q{q}"] = quantile_interval(histogram[0], EDGES, q, design, within=histogram[1])
        estimates[f"q{q}"] = np.quantile(cosines, q)
    return estimates, found


@dataclass
class Coverage:
    """How often intervals held the truth, they and a tenth of them; their mean widths."""

    covered: dict
    tenth: dict
    width: dict


def coverage(drawn, times):
    truth = {"mean": drawn.mean, "uniformity": drawn.uniformity}
    truth |= {f"q{q}": value for q, value in zip(QUANTILES, drawn.quantiles, strict=True)}
    found = Coverage({"band": 0}, {"band": 0}, {"band": 0})
    below = np.concatenate([[0], np.cumsum(drawn.shares)])
    for seed in range(times):
        bins, cosines, within, design = drawn.sample(seed)
        histogram = np.bincount(bins, minlength=1000), np.bincount(bins[within], minlength=1000)
        estimates, spans = intervals(histogram, cosines, within, design)
        for key, (low, high) in spans.items():
            count(found, key, low - 1e-12 <= truth[key] <= high + 1e-12, high - low, times)
            near = abs(truth[key] - estimates[key]) <= (high - low) / 20
            found.tenth[key] = found.tenth.get(key, 0) + near
        band = distribution_band(histogram[0], design, within=histogram[1])
        inside = (band.low <= below + 1e-9).all() and (below <= band.high + 1e-9).all()
        count(found, "band", inside, (band.high - band.low).max(), times)
        found.tenth["band"] += (abs(band.value - below) <= (band.high - band.low).max() / 20).all()
    print({key: round(float(value), 4) for key, value in found.width.items()}, found.tenth)
    return found


def count(found, key, inside, width, times):
    found.covered[key] = found.covered.get(key, 0) + bool(inside)
    found.width[key] = found.width.get(key, 0) + width / times


@pytest.mark.parametrize("name", ["isotropic", "anisotropic", "clusters in documents"])
def test_intervals_cover_at_the_confidence_they_state(name):
    found = coverage(population(name), TIMES)
    assert min(found.covered.values()) >= 0.99 * TIMES, found.covered
    assert found.width["mean"] < 1.5 and found.width["q0.5"] < 1.7  # of 2, at 80 rows


def test_a_tenth_of_the_width_does_not_cover():
    """The coverage test can fail: here rows differ so that intervals have little to spare."""
    share = np.random.default_rng(3).uniform(0, 1, 2000)
    # Row i is share_i of one common direction and a direction of its own.
    found = coverage(Population(np.outer(share, share), 400), 200)
    assert min(found.covered.values()) >= 198, found.covered
    del found.tenth["q0.01"]  # below 1060 rows, half of these intervals has no end but -1
    assert max(found.tenth.values()) < 185, found.tenth


def test_intervals_are_worth_their_rows():
    """At the sizes in use: half-widths near those of ⌊m/2⌋ independent pairs, not of all pairs."""
    design = PairDesign(16384, population=10**9)
    low, high = mean_interval(0.5, 0.05**2, design)
    assert math.sqrt(2 * math.log(6 / 0.01) / 8192) * 0.05 < (high - low) / 2 < 0.006
    counts = np.zeros(1000)
    counts[400:600] = 10**6
    band = distribution_band(counts, design)
    massart = math.sqrt(math.log(2 / 0.01) / (2 * 8192))
    assert massart < (band.high - band.low).max() / 2 < 1.1 * massart
    extreme = quantile_interval(counts, EDGES, 0.01, design)
    everywhere = quantile_interval(counts, EDGES, 0.01, design, simultaneous=True)
    assert everywhere.low < extreme.low < EDGES[402] < extreme.high < everywhere.high


def test_the_lemma_on_every_sample_of_a_small_population():
    """E exp(λ(1 − 1/N)U_m) ≤ E exp(λ·mean of k independent pairs), by enumeration.

    Mean and kernel are those of a perfect matching: disjoint pairs drawn without replacement
    from it spread wider than independent ones, so the naive argument fails for them.
    """
    n, m, k = 6, 4, 2
    kernel = np.zeros((n, n))
    for i in range(0, n, 2):
        kernel[i, i + 1] = kernel[i + 1, i] = 1
    upper = np.triu_indices(n, 1)
    kernel -= kernel[upper].mean()
    means = [np.mean([kernel[p] for p in combinations(s, 2)]) for s in combinations(range(n), m)]
    disjoint = [(kernel[a, b] + kernel[c, d]) / 2 for a, b, c, d in permutations(range(n), m)]
    for strength in (-8, -1, 1, 8):
        sampled = np.exp(strength * (1 - 1 / n) * np.array(means)).mean()
        independent = np.exp(strength * kernel[upper] / k).mean() ** k
        assert sampled <= independent
        assert np.exp(strength * np.array(disjoint)).mean() > independent


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99, 1 - 1e-9])
def test_the_band_is_markov_s_bound_at_the_best_threshold(confidence):
    counts, design = np.ones(1000), PairDesign(10**6)
    value = distribution_band(counts, design, confidence=confidence)
    radius = (value.high - value.value)[300]
    scale = math.sqrt(2 * design.blocks)

    def bound(s):
        return math.sqrt(math.pi) * erfc(s * scale) / ((radius - s) * scale)

    best = minimize_scalar(bound, bounds=(0, radius * (1 - 1e-9)), method="bounded")
    assert best.fun == pytest.approx(1 - confidence, rel=1e-4)


def test_a_sample_of_everything_is_exact():
    drawn = population("clusters in documents")
    drawn.size = 10**6
    bins, cosines, within, design = drawn.sample(0)
    assert design.exact and design.within_weight == 1
    histogram = np.bincount(bins, minlength=1000), np.bincount(bins[within], minlength=1000)
    _, found = intervals(histogram, cosines, within, design)
    assert found["mean"] == pytest.approx((drawn.mean, drawn.mean), abs=1e-12)
    for q, value in zip(QUANTILES, drawn.quantiles, strict=True):
        low, high = found[f"q{q}"]
        assert low <= value <= high and high - low == pytest.approx(0.002)
    low, high = found["uniformity"]
    assert low <= drawn.uniformity <= high and high - low < 0.009


def test_documents_of_one_length_count_as_rows_do():
    even = PairDesign.of_documents([4] * 10, documents=50, rows=200, largest=4)
    assert even.unevenness == pytest.approx(1) and even.blocks == 5
    uneven = PairDesign.of_documents([2] * 5 + [4] * 5, documents=50, rows=150, largest=4)
    assert uneven.unevenness == pytest.approx((200 * 199) / (150 * 149), rel=0.02)


def test_uneven_documents_and_small_populations_widen_every_interval():
    """By κ/μ̂ and by 1/(1 − 1/N), as the lemma asks."""
    plain, counts = PairDesign(400), np.ones(1000)
    for design in (PairDesign(400, unevenness=1.5), PairDesign(400, population=401, least=300)):
        for interval in (
            lambda d: mean_interval(0.0, 0.3, d),
            lambda d: quantile_interval(counts, EDGES, 0.5, d),
            lambda d: uniformity(counts, EDGES, d)[1:],
        ):
            (low, high), (lower, higher) = interval(plain), interval(design)
            assert lower < low and higher > high
        ratio = design.stretch * math.sqrt(plain.blocks / design.blocks)
        widths = [
            np.ptp([band.low[500], band.high[500]])
            for band in (distribution_band(counts, plain), distribution_band(counts, design))
        ]
        assert widths[1] / widths[0] == pytest.approx(ratio)
    assert PairDesign(3, population=4).stretch == pytest.approx(4 / 3)
    # To first order the mean's interval grows by √ρ: documents average what their rows spread.
    big = [mean_interval(0.0, 0.3, PairDesign(10**8, unevenness=rho)) for rho in (1, 4)]
    assert big[1].high / big[0].high == pytest.approx(2, rel=0.01)


def test_weights_undo_what_sampling_whole_documents_does_to_pairs():
    """Averaged over samples, the weighted histogram is the population's."""
    drawn = population("clusters in documents")
    drawn.documents = np.arange(len(drawn.cosines)) // 4
    weighted, plain = np.zeros(1000), np.zeros(1000)
    drawn.size = 12
    for seed in range(TIMES):
        bins, _, within, design = drawn.sample(seed)
        counts = np.bincount(bins, minlength=1000), np.bincount(bins[within], minlength=1000)
        weighted += design.shares(*counts) / TIMES
        plain += counts[0] / counts[0].sum() / TIMES
    top = EDGES[:-1] > 0
    truth = drawn.shares[top].sum()
    assert weighted[top].sum() == pytest.approx(truth, abs=0.02)
    assert plain[top].sum() > truth + 0.06


def test_counts_within_documents():
    x = np.random.default_rng(1).standard_normal((9, 3))
    labels = np.array([2, 0, 2, 1, 0, 2, 1, 1, 3])
    units = directions(x)
    cosines = [units[i] @ units[j] for i, j in combinations(range(9), 2) if labels[i] == labels[j]]
    expected = np.histogram(cosines, EDGES)[0]
    np.testing.assert_array_equal(within_counts(x, labels, EDGES), expected)
    assert expected.sum() == 7


@pytest.mark.parametrize("units", [0, 1, 2, 3])
def test_hardly_any_rows_say_hardly_anything(units):
    design, counts = PairDesign(units, population=100), np.ones(4)
    low, high = mean_interval(0.0, 0.0, design)
    assert low < -0.8 and high > 0.8
    band = distribution_band(counts, design)
    assert band.low[2] == 0 and band.high[2] == 1
    wide = quantile_interval(counts, np.linspace(-1, 1, 5), 0.5, design)
    assert wide == (-1, 1)


def test_extreme_means_and_quantiles_stay_in_range():
    design = PairDesign(1000, population=5000)
    assert mean_interval(1.0, 0.0, design).high == 1
    assert mean_interval(-1.0, 0.0, design).low == -1
    counts = np.array([0, 5, 5, 0])
    edges = np.linspace(-1, 1, 5)
    assert quantile_interval(counts, edges, 0.0, design) == (-1, 0)
    assert quantile_interval(counts, edges, 1.0, design) == (0, 1)
    exact = PairDesign(5, population=5)
    assert quantile_interval(counts, edges, 0.0, exact) == (-0.5, 0)
    assert quantile_interval(counts, edges, 1.0, exact) == (0, 0.5)


def test_refusals():
    design, counts, edges = PairDesign(10, population=100), np.ones(4), np.linspace(-1, 1, 5)
    with pytest.raises(aniso.InputError, match="confidence is 1"):
        mean_interval(0.0, 0.1, design, confidence=1.5)
    with pytest.raises(aniso.InputError, match="no values in"):
        mean_interval(2.0, 0.1, design)
    with pytest.raises(aniso.InputError, match="no values in"):
        mean_interval(math.nan, 0.1, design)
    with pytest.raises(aniso.InputError, match="q is -0"):
        quantile_interval(counts, edges, -0.1, design)
    with pytest.raises(aniso.InputError, match="pass 5 increasing edges"):
        quantile_interval(counts, edges[::-1].copy(), 0.5, design)
    with pytest.raises(aniso.InputError, match="no pairs"):
        distribution_band(np.zeros(4), design)
    with pytest.raises(aniso.InputError, match="bin by bin"):
        distribution_band(counts, design, within=2 * counts)
    with pytest.raises(aniso.InputError, match="counts ≥ 0"):
        distribution_band(-counts, design)
    with pytest.raises(aniso.InputError, match="cannot be a sample"):
        PairDesign(11, population=10)
