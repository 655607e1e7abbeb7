from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import aniso
from aniso.errors import InputError

METHODS = ["gram", "krylov"]


def decaying(m, n, dtype=torch.float32, last=1e-3):
    """Singular values from 1 to `last`, geometric."""
    short = min(m, n)
    left = torch.linalg.qr(torch.randn(m, short, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(n, short, dtype=torch.float64))[0]
    return ((left * torch.logspace(0, np.log10(last), short)) @ right.T).to(dtype)


def assert_certified(x, result, k, tolerance):
    """Shapes, values, bounds and what the certificate says of the factors, against LAPACK."""
    u, s, vh, certificate = (t.double() if isinstance(t, torch.Tensor) else t for t in result)
    wide = x.double()
    true = torch.linalg.svdvals(wide)[..., :k]
    assert u.shape == (*x.shape[:-1], k) and vh.shape == (*x.shape[:-2], k, x.shape[-1])
    # float64 LAPACK itself is this far off.
    spare = 1e-13 * true[..., :1]
    assert (certificate.lower <= true + spare).all() and (true <= certificate.upper + spare).all()
    assert ((s - true).abs() <= tolerance * true[..., :1]).all()
    norm = torch.linalg.matrix_norm(wide)
    rounded = 4 * torch.finfo(result.S.dtype).eps * k**0.5
    residual = torch.linalg.matrix_norm(wide @ vh.mT - u * s[..., None, :]) / norm
    assert (residual <= certificate.residual + rounded).all()
    for q in (u.mT @ u, vh @ vh.mT):
        defect = torch.linalg.matrix_norm(q - torch.eye(k))
        assert (defect <= certificate.orthogonality + rounded).all()
    assert (vh.gather(-1, vh.abs().argmax(-1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("m", "n"), [(5000, 40), (40, 5000), (4100, 257), (90, 70)])
def test_values_lie_within_their_bounds(m, n, method, dtype):
    x = decaying(m, n, dtype, 10 ** (-min(m, n) / 20))
    result = aniso.truncated_svd(x, 5, method=method)
    assert_certified(x, result, 5, 1e-7 if dtype != torch.float64 else 1e-12)
    width = result.certificate.upper - result.certificate.lower
    assert (width <= (1e-8 if dtype == torch.float64 else 3e-4) * result.S[0]).all()
    assert result.certificate.residual <= (1e-10 if dtype == torch.float64 else 1e-6)


def test_gram_bounds_are_narrow_where_values_tie_or_vanish():
    x = torch.zeros(4200, 6)
    x[:5, :5] = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1e-3, 0.0]))
    for k in (2, 3, 4, 6):
        result = aniso.truncated_svd(x, k, method="gram")
        assert_certified(x, result, k, 1e-12)
        width = (result.certificate.upper - result.certificate.lower)[: min(k, 4)]
        assert (width <= 1e-7 * 3.0).all(), (k, width)


@pytest.mark.parametrize("method", METHODS)
def test_rank_below_k(method):
    x = torch.outer(torch.arange(1.0, 4200.0), torch.tensor([1.0, 2.0, 0.5, 1, 1, 1, 1, 1, 1, 1]))
    result = aniso.truncated_svd(x, 4, method=method)
    assert_certified(x, result, 4, 1e-7)
    assert (result.S[1:] < 1e-6 * result.S[0]).all()
    zero = aniso.truncated_svd(torch.zeros(4200, 10), 4, method=method)
    assert zero.S.tolist() == [0.0] * 4 and float(zero.certificate.orthogonality) < 1e-12


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(s, torch.float64) for s in (1e-300, 1e-200, 1e200, 1e305)]
    + [(s, torch.float32) for s in (1e-36, 1e30, 1e37)],
)
def test_far_from_one(scale, dtype, method):
    plain = decaying(4200, 30, torch.float64)
    x = (plain * scale).to(dtype)
    result = aniso.truncated_svd(x, 3, method=method)
    true = torch.linalg.svdvals(plain)[:3]
    assert ((result.S.double() / scale - true).abs() <= 1e-6 * true).all()
    lower, upper = result.certificate.lower / scale, result.certificate.upper / scale
    assert (lower <= true * (1 + 1e-7)).all() and (true * (1 - 1e-7) <= upper).all()


def test_krylov_stops_at_tol_and_not_before():
    x = decaying(3000, 1500, torch.float64)
    loose = aniso.truncated_svd(x, 8, tol=0.1).certificate
    tight = aniso.truncated_svd(x, 8, tol=1e-9).certificate
    assert 1e-9 < loose.residual <= 0.1 and tight.residual <= 1e-9
    assert tight.method.startswith("krylov: 3000 x 1500, k = 8: short side above 1024")


def test_krylov_with_a_spectrum_that_hardly_decays():
    x = torch.randn(1200, 1100)
    result = aniso.truncated_svd(x, 4)
    assert result.certificate.residual <= 1e-6
    assert_certified(x, result, 4, 1e-6)


def test_krylov_warns_where_tol_is_out_of_reach(monkeypatch):
    import importlib

    monkeypatch.setattr(importlib.import_module("aniso.ops.truncated_svd"), "_CYCLES", 1)
    x = torch.randn(400, 300)
    with pytest.warns(RuntimeWarning, match="is at residual .* after 1 cycles of 5 blocks of 12"):
        result = aniso.truncated_svd(x, 4, method="krylov")
    assert result.certificate.residual > 1e-6
    true = torch.linalg.svdvals(x.double())[:4]
    assert (result.certificate.lower <= true).all() and (true <= result.certificate.upper).all()


def test_one_seed_one_result():
    x = decaying(300, 200)
    first, same = (aniso.truncated_svd(x, 3, method="krylov", seed=7) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[:3], same[:3], strict=True))
    other = aniso.truncated_svd(x, 3, method="krylov", seed=8)
    assert torch.allclose(other.S, first.S) and torch.allclose(other.Vh, first.Vh, atol=1e-3)


@pytest.mark.parametrize("method", ["auto", "krylov"])
def test_batches(method):
    x = torch.stack([decaying(60, 50) for _ in range(6)]).reshape(2, 3, 60, 50)
    assert_certified(x, aniso.truncated_svd(x, 4, method=method), 4, 1e-6)


def test_which_method_runs_and_why():
    why = {
        (5000, 100): "gram",
        (100, 5000): "gram",
        (2000, 1500): "krylov",
        (20, 10): "batched_svd",
        (3, 20, 10): "batched_svd",
    }
    for shape, name in why.items():
        backend = aniso.select_backend("truncated_svd", torch.empty(shape))
        assert backend.name == name and str(shape[-1]) in backend.reason
    asked = aniso.truncated_svd(torch.randn(30, 20), 2, method="krylov").certificate.method
    assert asked.startswith("krylov: 30 x 20, k = 2: as asked (")


def test_same_kind_of_array():
    x = np.random.default_rng(0).standard_normal((4500, 9)).astype(np.float32)
    u, s, vh, certificate = aniso.truncated_svd(x[:, ::-1], 9)
    assert all(isinstance(a, np.ndarray) for a in (u, s, vh, certificate.lower))
    assert np.allclose((u * s) @ vh, x[:, ::-1], atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (2, 0, 3), (5, 4)])
@pytest.mark.parametrize("method", ["auto", *METHODS])
def test_nothing_to_compute(shape, method):
    result = aniso.truncated_svd(torch.ones(shape), 0, method=method)
    assert result.U.shape == (*shape[:-1], 0) and result.Vh.shape == (*shape[:-2], 0, shape[-1])


@pytest.mark.parametrize("shape", [(4500, 8), (8, 4500), (20, 10)])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_value_that_is_not_finite_is_refused(shape, method, dtype):
    x = torch.randn(shape, dtype=dtype)
    x[6, 3] = torch.inf
    with pytest.raises(InputError, match="x has NaN or infinite values"):
        aniso.truncated_svd(x, 2, method=method)


def test_bad_arguments_are_named():
    x = torch.randn(20, 10)
    with pytest.raises(InputError, match="method is 'exact'; use 'auto', 'gram', 'krylov'"):
        aniso.truncated_svd(x, 2, method="exact")
    with pytest.raises(InputError, match="k is 11"):
        aniso.truncated_svd(x, 11)
    with pytest.raises(InputError, match="tol is 0"):
        aniso.truncated_svd(x, 2, tol=0)
    with pytest.raises(InputError, match="matrices are"):
        aniso.truncated_svd(x[0], 1)
    with pytest.raises(InputError, match="matrices are"):
        aniso.select_backend("truncated_svd", x[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aniso.truncated_svd(x, 10, method="krylov")
