from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch

import aniso
from aniso import reference
from aniso.metrics import METRICS, eigenvalues, spectrum
from aniso.metrics.eigenvalues import _exact_product, descending_eigenvalues, leading_eigenpairs


def computed(x, **options):
    state = aniso.LayerState(x.shape[1], **options)
    state.update(x)
    return state.compute()


def with_spectrum(sigma, n, mean=0.0):
    """Rows with given singular values, rotated at random."""
    d = len(sigma)
    u, _ = torch.linalg.qr(torch.randn(n, d, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))
    return u * torch.as_tensor(sigma) @ v.T + mean


SPECTRA = {
    "flat": np.ones(120),
    "geometric": np.geomspace(1, 1e-3, 120),
    "arithmetic": np.linspace(1, 1e-2, 120),
    "clustered": np.r_[np.full(60, 1.0), np.full(60, 0.1)],
    "one large": np.r_[1e3, np.ones(119)],
    "one small": np.r_[np.ones(119), 1e-3],
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_every_metric_equals_its_definition(name, mean):
    x = with_spectrum(SPECTRA[name], 500, mean)
    result, expected = computed(x), reference.layer_metrics(x)
    assert list(result.metrics) == list(METRICS) and set(expected) == set(METRICS)
    for key, value in expected.items():
        # Of order 1, and 0 for symmetric or flat spectra.
        shape = key in ("alpha_req", "sv_skewness", "singular_entropy_kl")
        if key == "sv_skewness" and name == "flat" and mean == 0.0:
            continue  # 0/0: equal singular values have no skewness
        tolerance = {"rel": 1e-8, "abs": 1e-9 if shape else 0.0}
        assert result.metrics[key] == pytest.approx(value, nan_ok=True, **tolerance), key
    shares = reference.contributions(x)
    np.testing.assert_allclose(result.contributions, shares, rtol=1e-9, atol=1e-15)
    assert result.contributions.sum() == pytest.approx(result.metrics["mean_cosine"], rel=1e-10)


@pytest.mark.parametrize("target", [0.5, 0.9, 0.99999])
def test_variance_of_the_cosine_does_not_cancel(target):
    spread = math.sqrt(1 / target - 1)
    x = torch.randn(3000, 64) * spread / 8
    x[:, 0] += 1
    _, var = reference.cosine_mean_var(x)
    result = aniso.cosine_stats(x)
    assert result.mean == pytest.approx(target, abs=0.05)
    assert result.var == pytest.approx(var, rel=1e-6)


@pytest.mark.parametrize("spread", [1.0, 0.3, 0.003])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [2, 3, 19, 20, 21])
def test_variance_of_fewer_rows_than_dimensions(n, dtype, spread):
    """By products of rows up to half the dimensions, by products of columns beyond."""
    x = (torch.randn(1, 40) + spread * torch.randn(n, 40)).to(dtype)
    exact = float(reference.pair_cosines(x.double()).var(unbiased=False))
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-3}.get(dtype, 1e-9) if n > 20 else 1e-9
    assert aniso.cosine_stats(x).var == pytest.approx(exact, rel=tolerance, abs=1e-28)


@pytest.mark.parametrize("left_out", [None, [3, 7]])
def test_few_rows_are_those_that_count(left_out):
    x = torch.randn(50, 40)
    x[4] = 0
    x[5, [k for k in range(40) if k not in (3, 7)]] = 0
    x[6, 1] = math.nan
    mask = torch.arange(50) < 12
    counted = [i for i in range(12) if i not in ((4, 6) if left_out is None else (4, 5, 6))]
    kept = [k for k in range(40) if left_out is None or k not in left_out]
    found = aniso.cosine_stats(x, mask=mask, nonfinite="skip", without=left_out)
    assert (found.rows, found.nonfinite_rows, found.mask_rows) == (11, 1, 38)
    mean, var = reference.cosine_mean_var(x[counted][:, kept])
    assert found.mean == pytest.approx(mean, rel=1e-9)
    assert found.var == pytest.approx(var, rel=1e-9)


def test_few_rows_of_any_width():
    """Products of columns would take 80 GB."""
    x = torch.randn(5, 100_000)
    assert aniso.cosine_stats(x).var == pytest.approx(reference.cosine_mean_var(x)[1], rel=1e-9)


def test_isoscore_is_the_package_s():
    from IsoScore.IsoScore import IsoScore

    x = torch.randn(400, 20, dtype=torch.float64) * torch.linspace(0.1, 2, 20)
    assert computed(x).metrics["isoscore"] == pytest.approx(float(IsoScore(x.numpy())), rel=1e-6)


def test_moments_of_singular_values_against_scipy():
    x = torch.randn(300, 41)
    sigma = np.linalg.svd(x.double().numpy(), compute_uv=False)
    result = computed(x).metrics
    assert result["sv_skewness"] == pytest.approx(scipy.stats.skew(sigma), rel=1e-9)
    assert result["sv_median_ratio"] == pytest.approx(np.median(sigma) / sigma[0], rel=1e-12)
    assert result["rankme"] == pytest.approx(math.exp(scipy.stats.entropy(sigma)), rel=1e-12)


def test_known_values():
    basis = computed(torch.eye(4)).metrics
    assert basis["mean_cosine"] == 0 and basis["var_cosine"] == pytest.approx(0, abs=1e-16)
    assert basis["von_neumann_entropy"] == pytest.approx(math.log(4))
    pair = computed(torch.tensor([[1.0, 0], [-1.0, 0]])).metrics
    assert pair["mean_cosine"] == -1 and pair["var_cosine"] == 0 and pair["relative_drift"] == 0
    power = torch.arange(1, 201, dtype=torch.float64) ** -1.7
    assert spectrum.alpha_req(power) == pytest.approx(1.7, rel=1e-12)
    assert spectrum.participation_ratio(torch.ones(8, dtype=torch.float64)) == 8


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_rows(n):
    x = torch.randn(n, 5)
    result = aniso.cosine_stats(x)
    assert result.rows == n
    assert math.isnan(result.mean) == (n < 2) and math.isnan(result.var) == (n < 2)
    metrics = computed(x).metrics
    assert math.isnan(metrics["rankme"]) == (n == 0)
    assert math.isnan(metrics["isoscore"]) == (n < 2)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_rows_without_spread_have_no_covariance_metrics(value):
    metrics = computed(torch.full((20, 6), value)).metrics
    for key in ("participation_ratio", "isoscore", "effective_rank", "spectral_anisotropy"):
        assert math.isnan(metrics[key]), key
    assert math.isnan(metrics["mean_cosine"]) == (value == 0.0)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_rows_whose_squares_leave_float64_keep_what_has_a_value(scale):
    x = torch.randn(50, 6, dtype=torch.float64) + 1
    plain, scaled = computed(x).metrics, computed(x * scale).metrics
    for key in ("mean_cosine", "var_cosine", "relative_drift", "von_neumann_entropy"):
        assert scaled[key] == pytest.approx(plain[key], rel=1e-12)
    assert scaled["drift_norm"] == pytest.approx(plain["drift_norm"] * scale, rel=1e-12)
    assert math.isnan(scaled["rankme"]) and math.isnan(scaled["isoscore"])


def test_one_column():
    metrics = computed(torch.randn(50, 1)).metrics
    assert math.isnan(metrics["isoscore"]) and metrics["rankme"] == pytest.approx(1)


def test_fewer_rows_than_columns_count_only_their_singular_values():
    x = torch.randn(7, 40)
    result = computed(x)
    assert len(result.singular_values) == 7
    np.testing.assert_allclose(result.singular_values, reference.singular_values(x), rtol=1e-9)


def test_values_below_the_resolution_floor_are_the_ones_in_doubt():
    sigma = np.geomspace(1, 1e-12, 60)
    result = computed(with_spectrum(sigma, 300))
    resolved = sigma > 30 * result.resolution_floor
    assert resolved.sum() > 20
    error = np.abs(result.singular_values / sigma - 1)
    assert error[resolved].max() < 1e-2
    assert error[sigma < result.resolution_floor / 30].max() > 1e-2


def test_a_singular_value_at_the_rounding_of_float32_keeps_its_digits():
    """Layer norms leave directions of σ ~ 1e-8 σ₁, which a plain eigensolver loses in its ε·λ₁."""
    rows = torch.randint(-1000, 1000, (60, 12), dtype=torch.float64)
    rows[:, 0] = 100 * rows[:, 1] + torch.randint(0, 2, (60,))
    gram = rows.T @ rows  # of integers below 2^53: exact
    with mpmath.workdps(50):
        exact = mpmath.sqrt(min(mpmath.eigsy(mpmath.matrix(gram.tolist()), eigvals_only=True)))
    plain = torch.linalg.eigvalsh(gram)[0].clamp(min=0).sqrt()
    assert abs(float(plain) / float(exact) - 1) > 1e-7
    assert float(descending_eigenvalues(gram)[-1].sqrt()) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(1, 100), (12, 100), (25, 100), (26, 100), (60, 100)])
@pytest.mark.parametrize("decades", [0, 5])
def test_eigenvalues_of_fewer_rows_than_columns(n, d, decades):
    """In the range of the matrix up to d/4 rows, as accurate as all of them."""
    x = torch.randn(n, d, dtype=torch.float64)
    x *= torch.logspace(0, -decades, n, dtype=torch.float64)[:, None]
    exact = torch.linalg.svdvals(x)
    found = descending_eigenvalues(x.T @ x, n)
    assert (found[n:] == 0).all()
    torch.testing.assert_close(found[:n].sqrt(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(found[:n].sqrt(), exact, rtol=0, atol=1e-11 * float(exact[0]))
    values, vectors = leading_eigenpairs(x.T @ x, n, n)
    torch.testing.assert_close(values, found[:n], rtol=1e-9, atol=0)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(n, dtype=torch.float64))
    residual = x.T @ (x @ vectors) - vectors * values
    assert float(residual.abs().max()) < 1e-13 * float(values[0])


def test_metrics_of_few_rows_of_many_dimensions():
    x = torch.randn(150, 700) + 0.5
    metrics, expected = computed(x).metrics, reference.layer_metrics(x)
    for key, value in metrics.items():
        assert value == pytest.approx(expected[key], rel=1e-7), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_rank_metrics_are_as_good_as_of_all_eigenvalues(dtype, monkeypatch):
    """40 strong directions above a floor of 2 %: what the kernels round lies beyond the range."""
    x = torch.randn(120, 40) @ torch.randn(40, 600) / 6 + 0.02 * torch.randn(120, 600)
    low = computed(x.to(dtype)).metrics
    monkeypatch.setattr(eigenvalues, "_LOW_RANK", 10**9)
    full = computed(x.to(dtype)).metrics
    for key, value in low.items():
        assert value == pytest.approx(full[key], rel=1e-5), key


@pytest.mark.parametrize("n", [16, 40, 90])
def test_alpha_of_few_rows_is_of_the_eigenvalues_they_have(n):
    """n rows about their mean have n − 1 directions; what rounds beyond them is none."""
    x = torch.randn(n, 150)
    expected = reference.alpha_req(reference.covariance_eigenvalues(x)[: n - 1])
    assert computed(x).metrics["alpha_req"] == pytest.approx(expected, rel=1e-8)


def test_exact_product_is_exact_where_float64_cancels():
    a, b = torch.randn(5, 40, dtype=torch.float64), torch.randn(40, 2, dtype=torch.float64)
    a[:, 20:], b[20:] = a[:, :20], -b[:20] * (1 + 2**-40)
    high, low = _exact_product(a, b)
    for i in range(5):
        for j in range(2):
            exact = sum(
                Fraction(float(x)) * Fraction(float(y)) for x, y in zip(a[i], b[:, j], strict=True)
            )
            found = Fraction(float(high[i, j])) + Fraction(float(low[i, j]))
            assert abs(found - exact) < Fraction(1, 2**62)
    assert (a @ b - high - low).abs().max() > 2**-53


def test_without_gram_first_order_metrics_only():
    result = computed(torch.randn(20, 5), gram=False)
    assert "mean_cosine" in result.metrics and "var_cosine" not in result.metrics
    assert result.singular_values is None and result.resolution_floor is None


def test_nonfinite_rows_raise_or_are_counted():
    x = torch.randn(12, 3)
    x[4, 2] = torch.inf
    with pytest.raises(aniso.InputError, match="the first is row 4"):
        aniso.cosine_stats(x)
    kept = torch.cat([x[:4], x[5:]])
    skipped = aniso.cosine_stats(x, nonfinite="skip")
    assert (skipped.rows, skipped.nonfinite_rows) == (11, 1)
    assert skipped.mean == pytest.approx(aniso.cosine_stats(kept).mean, rel=1e-14)
    with pytest.raises(aniso.InputError, match="nonfinite is 'ignore'"):
        aniso.cosine_stats(x, nonfinite="ignore")


def test_every_key_has_a_formula_and_a_source():
    assert all(m.key == key and m.title and m.formula and m.reference for key, m in METRICS.items())
