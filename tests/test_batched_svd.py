from __future__ import annotations

import numpy as np
import pytest
import torch

import aniso
from aniso import _native
from aniso.errors import InputError
from aniso.ops.batched_svd import METHODS

SHAPES = [(1, 1), (1, 7), (7, 1), (3, 3), (8, 20), (20, 8), (33, 65), (128, 40), (64, 64)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def out_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_values_and_factors_equal_lapack(m, n, dtype):
    x = torch.randn(2, 3, m, n).to(dtype)
    u, s, vh = aniso.svd(x)
    true = torch.linalg.svdvals(x.double())
    eps = torch.finfo(out_dtype(dtype)).eps
    assert u.dtype == s.dtype == vh.dtype == out_dtype(dtype)
    assert u.shape == (2, 3, m, min(m, n)) and vh.shape == (2, 3, min(m, n), n)
    tolerance = (35 if dtype == torch.float64 else 1) * eps * true[..., :1]
    assert ((s - true).abs() <= tolerance).all()
    assert ((aniso.svdvals(x) - true).abs() <= tolerance).all()
    allowed = 35 * eps * max(m, n)
    error = torch.linalg.matrix_norm(x.double() - (u.double() * s[..., None, :]) @ vh.double())
    assert (error <= allowed * true[..., 0]).all()
    for q in (u.mT.double() @ u.double(), vh.double() @ vh.mT.double()):
        assert (q - torch.eye(len(q[0, 0]))).abs().max() <= allowed


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 5, 0), (0, 0)])
def test_empty(shape):
    x = torch.empty(shape)
    short = min(shape[-2:])
    assert aniso.svdvals(x).shape == (*shape[:-2], short)
    u, s, vh = aniso.svd(x)
    assert u.shape == (*shape[:-1], short) and vh.shape == (*shape[:-2], short, shape[-1])
    assert s.shape == (*shape[:-2], short)


def test_top_k_and_signs():
    x = torch.randn(4, 10, 30)
    u, s, vh = aniso.svd(x, k=3)
    assert u.shape == (4, 10, 3) and s.shape == (4, 3) and vh.shape == (4, 3, 30)
    assert torch.allclose(s, torch.linalg.svdvals(x)[:, :3])
    assert (vh.gather(2, vh.abs().argmax(2, keepdim=True)) > 0).all()
    assert aniso.svdvals(x, k=0).shape == (4, 0)


def test_certificate_holds_the_true_values():
    x = torch.randn(3, 12, 40)
    _, certificate = aniso.svdvals(x, certificate=True)
    true = torch.linalg.svdvals(x.double())
    assert (certificate.lower <= true).all() and (true <= certificate.upper).all()
    assert ((certificate.upper - certificate.lower) <= 1e-10 * true[:, :1]).all()
    assert certificate.residual is None and certificate.method
    factors = aniso.svd(x)
    assert (factors.certificate.residual < 1e-6).all()
    assert (factors.certificate.orthogonality < 1e-5).all()
    assert len(factors) == 3


def test_same_kind_of_array():
    x = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)
    u, s, vh = aniso.svd(x)
    assert all(isinstance(a, np.ndarray) for a in (u, s, vh, aniso.svdvals(x)))
    assert np.allclose((u * s) @ vh, x, atol=1e-5)


def test_gradients_of_values():
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(aniso.svdvals, x)
    y = torch.randn(2, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: aniso.svdvals(t, k=2), y)


def test_operators_follow_the_rules_of_torch():
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.aniso.svdvals.default, (x, 3, "normal"))
    values, bounds = torch.empty(2, 4).double(), torch.empty(2, 2, 4).double()
    left, right = torch.empty(2, 4, 4).double(), torch.empty(2, 4, 6).double()
    checks, methods = torch.empty(2, 2).double(), torch.empty(2, dtype=torch.int8)
    torch.library.opcheck(
        torch.ops.aniso.batched_svd.default,
        (x.detach(), "normal", values, left, right, bounds, checks, methods),
    )


def test_compiles_without_graph_breaks():
    x = torch.randn(2, 4, 6)
    compiled = torch.compile(lambda t: aniso.svdvals(t).sum(), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), torch.linalg.svdvals(x).sum())


def test_bad_input_is_named():
    x = torch.randn(2, 3, 4, 5)
    x[1, 2, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"matrix \[1, 2\] of x has NaN"):
        aniso.svdvals(x)
    with pytest.raises(InputError, match="x has NaN"):
        aniso.svd(x[1, 2])
    with pytest.raises(InputError, match="k is 9"):
        aniso.svd(torch.randn(4, 5), k=9)
    with pytest.raises(InputError, match="matrices are"):
        aniso.svdvals(torch.randn(4))
    with pytest.raises(InputError, match="dtype int64"):
        aniso.svdvals(torch.ones(4, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="accuracy is 'best'"):
        aniso.svdvals(torch.randn(4, 4), accuracy="best")


def test_factorisation_compiles_without_graph_breaks():
    def product(t):
        u, s, vh = aniso.svd(t)
        return u, s, vh

    x = torch.randn(2, 4, 6)
    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")
    u, s, vh = compiled(x)
    assert torch.allclose((u * s[:, None, :]) @ vh, x, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 12, 20), (2, 20, 12)])
def test_larger_matrices_go_to_torch_and_say_so(shape, monkeypatch):
    monkeypatch.setattr(_native, "batched_svd_max_side", 8)
    x = torch.randn(shape)
    u, s, vh = factors = aniso.svd(x)
    assert factors.certificate.method == "torch"
    assert "beyond 8 on its short side" in aniso.select_backend("batched_svd", x).reason
    assert torch.allclose((u * s[:, None, :]) @ vh, x, atol=1e-5)
    assert (factors.certificate.residual < 1e-13).all()
    values, certificate = aniso.svdvals(x, certificate=True)
    assert torch.allclose(values, torch.linalg.svdvals(x))
    assert (certificate.lower <= certificate.upper).all()
    x[0, 0, 0] = float("inf")
    with pytest.raises(InputError, match=r"matrix \[0\] of x"):
        aniso.svdvals(x)


def test_matrices_without_convergence_go_to_torch(monkeypatch):
    kernel = _native.batched_svd_cpu

    def gives_up(*arguments, **options):
        kernel(*arguments, **options)
        arguments[6][1] = METHODS.index("torch")
        arguments[1][1] = 0.0

    monkeypatch.setattr(_native, "batched_svd_cpu", gives_up)
    x = torch.randn(3, 6, 9)
    factors = aniso.svd(x)
    assert torch.allclose(factors.S, torch.linalg.svdvals(x))
    assert factors.certificate.method == "gram: 2 matrices; torch: 1 matrices"
