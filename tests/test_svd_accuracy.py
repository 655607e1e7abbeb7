from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from svd_cases import KINDS, matrices

import aniso
from aniso.ops import batched_svd_into

# 2,205 matrices for every dtype.
SHAPES = {
    (1, 1): 18,
    (2, 2): 18,
    (1, 9): 18,
    (5, 3): 18,
    (16, 16): 18,
    (33, 65): 18,
    (65, 33): 18,
    (128, 128): 7,
    (100, 300): 7,
    (300, 100): 6,
    (512, 512): 1,
}
DENORMAL = {torch.float64: 5e-324, torch.float32: 1.5e-45}
# float64 LAPACK's own error, in the reference.
REFERENCE_ERROR = 2e-14


def values_before_rounding(x):
    b, p = len(x), min(x.shape[1:])
    values, bounds = torch.empty(b, p).double(), torch.empty(2, b, p).double()
    checks, methods = torch.empty(2, b).double(), torch.empty(b, dtype=torch.int8)
    batched_svd_into(x, "normal", values, None, None, bounds, checks, methods)
    return values, bounds


def true_values(x):
    """In float64, of matrices brought to about 1."""
    scale = x.double().abs().amax(dim=(1, 2)).clamp(min=1e-300)
    gesvd = [
        scipy.linalg.svd(a, compute_uv=False, lapack_driver="gesvd")
        for a in (x.double() / scale[:, None, None]).numpy()
    ]
    return torch.from_numpy(np.array(gesvd)), scale


def lapack_error(x, true):
    """The largest error of float32 LAPACK (gesvd), relative to σ₁."""
    own = [scipy.linalg.svd(a, compute_uv=False, lapack_driver="gesvd") for a in x.numpy()]
    return ((torch.from_numpy(np.array(own)).double() - true).abs() / leading(true)).amax()


def leading(true):
    return torch.where(true[:, :1] > 0, true[:, :1], 1.0)


def cases(kind, dtype):
    for (m, n), b in SHAPES.items():
        generator = torch.manual_seed(sum(map(ord, kind)) + 7 * m + n)
        assert generator is not None
        yield matrices(kind, b, m, n).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_values(kind):
    for x in cases(kind, torch.float32):
        scaled, scale = true_values(x)
        true = scaled * scale[:, None]
        values, (lower, upper) = values_before_rounding(x)
        error = ((values - true).abs() / leading(true)).amax()
        assert error <= 2e-8
        if kind not in ("denormal", "near overflow"):  # LAPACK itself rescales or fails on these
            assert error <= lapack_error(x, true) + 1e-15
        slack = REFERENCE_ERROR * true[:, :1]
        assert (lower <= true + slack).all() and (true <= upper + slack).all()
        assert (lower <= values).all() and (values <= upper).all()
        returned = (aniso.svdvals(x).double() - true).abs() - DENORMAL[x.dtype]
        assert (returned <= 6e-8 * true[:, :1]).all()


@pytest.mark.parametrize("accuracy", ["normal", "high"])
@pytest.mark.parametrize("kind", KINDS)
def test_float64_values(kind, accuracy):
    eps = torch.finfo(torch.float64).eps
    for x in cases(kind, torch.float64):
        if accuracy == "high" and min(x.shape[1:]) > 200:
            continue  # ten seconds each; one kind of that size is tested below
        true, scale = true_values(x)
        values, certificate = aniso.svdvals(x, accuracy=accuracy, certificate=True)
        assert ((values / scale[:, None] - true).abs() <= 35 * eps * leading(true)).all()
        slack = REFERENCE_ERROR * true[:, :1]
        assert (certificate.lower / scale[:, None] <= true + slack).all()
        assert (true <= certificate.upper / scale[:, None] + slack).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_factors(kind, dtype):
    for x in cases(kind, dtype):
        u, s, vh = (t.double() for t in aniso.svd(x))
        eps = torch.finfo(dtype if dtype != torch.bfloat16 else torch.float32).eps
        allowed = 35 * eps * max(x.shape[1:])
        scale = x.double().abs().amax(dim=(1, 2)).clamp(min=1e-300)[:, None, None]
        rest = x.double() / scale - (u * (s[:, None, :] / scale)) @ vh
        tiny = DENORMAL.get(dtype, DENORMAL[torch.float32]) / scale
        size = torch.linalg.matrix_norm(x.double() / scale)
        slack = (tiny * max(x.shape[1:])).squeeze()
        assert (torch.linalg.matrix_norm(rest) <= allowed * size + slack).all()
        for q in (u.mT @ u, vh @ vh.mT):
            assert (q - torch.eye(q.shape[-1])).abs().amax() <= allowed


def test_median_of_the_cliff_spectrum():
    """Four values of 1 and the rest 1.5e-6: right to 1 %, where a float32 Gram matrix is lost."""
    torch.manual_seed(0)
    x = matrices("cliff", 4, 128, 300).float()
    true = torch.linalg.svdvals(x.double()).median(dim=1).values
    ours = aniso.svdvals(x).double().median(dim=1).values
    assert ((ours / true - 1).abs() < 0.01).all()
    naive = torch.linalg.eigvalsh(x @ x.mT).abs().sqrt().median(dim=1).values
    assert (naive / true > 5).all()


def test_high_accuracy_of_a_large_matrix():
    eps = torch.finfo(torch.float64).eps
    x = matrices("geometric", 1, 512, 512)
    u, s, vh = factors = aniso.svd(x, accuracy="high")
    true, _ = true_values(x)
    assert factors.certificate.method == "jacobi"
    assert ((s - true * x.abs().amax()).abs() <= 35 * eps * true[:, :1]).all()
    rest = torch.linalg.matrix_norm(x - (u * s[:, None, :]) @ vh)
    assert (rest <= 35 * 512 * eps * torch.linalg.matrix_norm(x)).all()
    for q in (u.mT @ u, vh @ vh.mT):
        assert (q - torch.eye(512)).abs().amax() <= 35 * 512 * eps


# Widest intervals seen, over σ₁, with room of a factor 2: a value of which only the Gram matrix is
# known is as wide as its error is, 2e-14, over twice the value.
WIDTHS = {torch.float64: 4e-12, torch.float32: 4e-7}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_intervals_are_narrow(dtype, record_property):
    for kind in KINDS:
        widest = 0.0
        for x in cases(kind, dtype):
            _, (lower, upper) = values_before_rounding(x)
            widest = max(widest, float(((upper - lower) / leading(upper)).amax()))
        record_property(f"widest interval over the largest value, {kind}", widest)
        print(f"{kind} {dtype}: {widest:.1e}")
        assert widest <= WIDTHS[dtype], kind


def test_high_accuracy_keeps_small_values_of_graded_rows():
    """Rows of very different length: one-sided Jacobi finds every value to its own precision."""
    torch.manual_seed(0)
    lengths = torch.logspace(0, -60, 12, dtype=torch.float64)
    rows = torch.linalg.qr(torch.randn(30, 12, dtype=torch.float64))[0].T
    rows = rows + 0.1 * torch.randn(12, 30, dtype=torch.float64)
    x = lengths[:, None] * rows
    values, certificate = aniso.svdvals(x, accuracy="high", certificate=True)
    # The QR factors of graded rows have nearly the values on their diagonal.
    diagonal = torch.linalg.qr(x.T)[1].diagonal().abs().sort(descending=True).values
    assert ((values / diagonal).log().abs() < 0.1).all()
    assert certificate.method == "jacobi"
    permuted = aniso.svdvals(x[torch.randperm(12)], accuracy="high")
    assert ((permuted / values - 1).abs() < 1e-13).all()


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (7, 19), (40, 40), (90, 33)])
def test_every_instruction_set(m, n, isa):
    from aniso import _native

    x = torch.randn(3, m, n)
    k = min(m, n)
    values, bounds = torch.empty(3, k).double(), torch.empty(2, 3, k).double()
    left, right = torch.empty(3, m, k), torch.empty(3, k, n)
    checks, methods = torch.empty(2, 3).double(), torch.empty(3, dtype=torch.int8)
    outputs = (values, left, right, bounds, checks, methods)
    known = ("baseline", "avx2", "avx512")
    if known.index(isa) > known.index(_native.isa):
        with pytest.raises(ValueError, match=isa):
            _native.batched_svd_cpu(x, *outputs, high=False, threads=1, isa=isa)
        return
    _native.batched_svd_cpu(x, *outputs, high=False, threads=1, isa=isa)
    true = torch.linalg.svdvals(x.double())
    assert ((values - true).abs() <= 1e-12 * true[:, :1]).all()
    assert torch.allclose((left * values[:, None, :].float()) @ right, x, atol=1e-5)


def test_checks_estimate_what_they_say():
    x = torch.randn(6, 40, 90)
    factors = aniso.svd(x)
    certificate = factors.certificate
    u, s, vh = (t.double() for t in factors)
    orthogonality = torch.linalg.matrix_norm(u.mT @ u - torch.eye(40))
    # Rounding the factors to float32 comes after the checks, and is larger than all they find.
    assert (certificate.orthogonality < orthogonality).all()
    residual = torch.linalg.matrix_norm(x.double() @ vh.mT - u * s[:, None, :])
    assert (certificate.residual < residual / torch.linalg.matrix_norm(x)).all()
    assert (certificate.residual < 1e-13).all() and (certificate.orthogonality < 1e-9).all()
