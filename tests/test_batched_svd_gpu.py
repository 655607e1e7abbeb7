"""The GPU algorithm of batched_svd: on threads of a CPU, and where there is one on a GPU."""

from __future__ import annotations

import math

import pytest
import torch
from svd_cases import KINDS, matrices

import aniso
from aniso import _native

GRAM, REFINED, JACOBI, FAILED = 0, 1, 2, 3
SHAPES = [(1, 1), (2, 2), (1, 9), (5, 3), (33, 65), (65, 33), (40, 40)]
# Kinds whose smallest values a Gram matrix leaves in doubt, or that have no vectors of their own.
DOUBTFUL = {
    "geometric",
    "arithmetic",
    "one large",
    "one small",
    "cliff",
    "rank-deficient",
    "random",
    "duplicate rows",
}
# float64 LAPACK's own error, in the reference.
REFERENCE_ERROR = 2e-14


def factorized(x, k, *, vectors=True, effort="gram", threads=8, near=True):
    """What the algorithm writes, every output poisoned before."""
    b, m, n = x.shape
    doubles = [torch.full(s, math.nan).double() for s in ((b, k), (2, b, k), (2, b))]
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    left = torch.full((b, m, k), math.nan, dtype=dtype) if vectors else None
    right = torch.full((b, k, n), math.nan, dtype=dtype) if vectors else None
    methods = torch.full((b,), -7, dtype=torch.int8)
    outputs = (doubles[0], left, right, *doubles[1:], methods)
    _native.batched_svd_emulated(x, outputs, effort=effort, threads=threads, near=near)
    return outputs


def require_values(x, values, bounds):
    true = torch.linalg.svdvals(x.double())[:, : values.shape[1]]
    leading = torch.where(true[:, :1] > 0, true[:, :1], 1.0)
    assert ((values - true).abs() <= 2e-11 * leading).all()
    slack = REFERENCE_ERROR * true[:, :1]
    assert (bounds[0] <= true + slack).all() and (true <= bounds[1] + slack).all()
    assert (values.diff(dim=1) <= 0).all()


def require_factors(x, values, left, right):
    allowed = 35 * torch.finfo(torch.float32).eps * max(x.shape[1:])
    scale = x.double().abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-300)
    image = (x.double() / scale) @ right.double().mT
    rest = image - left.double() * (values[:, None, :] / scale)
    size = torch.linalg.matrix_norm(x.double() / scale)
    assert (torch.linalg.matrix_norm(rest) <= allowed * size).all()
    for q in (left.double().mT @ left.double(), right.double() @ right.double().mT):
        assert (q - torch.eye(q.shape[-1])).abs().amax() <= allowed
    assert (right.amax(2) >= (1 - 1e-6) * right.abs().amax(2)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vectors", [False, True], ids=["values", "vectors"])
def test_every_kind_is_right_or_left_in_doubt(kind, vectors):
    for (m, n), near in zip(SHAPES, [True, False] * 4, strict=False):
        x = matrices(kind, 2, m, n).float()
        values, left, right, bounds, checks, methods = factorized(
            x, min(m, n), vectors=vectors, near=near
        )
        done = methods == GRAM
        assert (done | (methods == FAILED)).all()
        if min(m, n) > 4 and kind != "sink row":
            in_doubt = kind in DOUBTFUL or (kind == "zero" and vectors)
            assert not done.any() if in_doubt else done.all()
        if not done.any():
            continue
        require_values(x[done], values[done], bounds[:, done])
        if vectors:
            require_factors(x[done], values[done], left[done], right[done])
            assert (checks[0, done] < 1e-10).all() and (checks[1, done] < 1e-5).all()


@pytest.mark.parametrize(
    ("kind", "m", "n", "k"),
    [
        ("integer", 161, 200, 161),
        ("clustered", 200, 170, 170),
        ("repeated", 177, 190, 177),
        ("near overflow", 333, 350, 40),
        ("denormal", 192, 192, 192),
        ("sink row", 240, 300, 9),
        ("integer", 512, 520, 512),
    ],
)
def test_two_stages_where_the_gram_matrix_is_off_the_chip(kind, m, n, k):
    """Orders that are whole blocks of the band and others, all the values and the first."""
    x = matrices(kind, 1, m, n).float()
    values, left, right, bounds, checks, methods = factorized(x, k, threads=4, near=False)
    assert (methods == GRAM).all()
    require_values(x, values, bounds)
    require_factors(x, values, left, right)
    assert (checks[0] < 1e-10).all() and (checks[1] < 1e-5).all()
    alone, *_ = factorized(x, k, vectors=False, threads=4, near=False)
    require_values(x, alone, bounds)


def require_refined(x, k, *, near, threads=4):
    """Right in values and vectors, with and without them, and the certificate says so."""
    values, left, right, bounds, checks, methods = factorized(
        x, k, effort="refined", near=near, threads=threads
    )
    require_values(x, values, bounds)
    require_factors(x, values, left, right)
    assert (checks[0] < 1e-10).all() and (checks[1] < 1e-5).all()
    alone, _, _, bounds, _, same = factorized(
        x, k, vectors=False, effort="refined", near=near, threads=threads
    )
    require_values(x, alone, bounds)
    assert torch.equal(methods, same)
    return methods


@pytest.mark.parametrize("near", [False, True], ids=["off the chip", "on the chip"])
@pytest.mark.parametrize("kind", KINDS)
def test_small_values_are_refined(kind, near):
    for m, n, k in ((1, 1, 1), (5, 3, 3), (33, 40, 33), (40, 33, 8)):
        methods = require_refined(matrices(kind, 2, m, n).float(), k, near=near)
        if k > 4 and kind != "sink row":
            assert (methods == (REFINED if kind in DOUBTFUL else GRAM)).all()


@pytest.mark.parametrize(
    "kind", ["geometric", "cliff", "one small", "rank-deficient", "duplicate rows"]
)
def test_small_values_of_larger_matrices_are_refined(kind):
    for m, n, k, near in ((150, 160, 150, True), (190, 170, 170, False), (164, 170, 9, False)):
        x = matrices(kind, 1, m, n).float()
        assert (require_refined(x, k, near=near) == REFINED).all()


def test_reflectors_of_entries_whose_squares_vanish():
    """Equal rows leave entries near 1e-160; reflectors of them were not orthogonal."""
    torch.manual_seed(0)
    require_refined(matrices("duplicate rows", 12, 33, 65).float(), 33, near=False)


def test_small_values_keep_the_median_of_the_cliff_spectrum():
    x = matrices("cliff", 2, 40, 60).float()
    true = torch.linalg.svdvals(x.double()).median(dim=1).values
    for near in (False, True):
        values = factorized(x, 40, vectors=False, effort="refined", near=near)[0]
        assert ((values.median(dim=1).values / true - 1).abs() < 0.01).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [4, 16])
def test_dtypes_strides_and_top_k(dtype, threads):
    for x in (
        torch.randn(3, 20, 44).to(dtype),
        torch.randn(3, 44, 20).to(dtype).mT,
        torch.randn(3, 20, 88).to(dtype)[:, :, ::2],
        torch.randn(1, 44, 20).to(dtype).expand(3, 44, 20),
    ):
        values, left, right, bounds, _, methods = factorized(x, 7, threads=threads)
        assert (methods == GRAM).all()
        require_values(x, values, bounds)
        require_factors(x, values, left, right)
        alone, *_ = factorized(x, 7, vectors=False, threads=threads)
        require_values(x, alone, bounds)


EPS64 = 2.0**-52


def exact_kind(kind, b, m, n):
    """Matrices of a kind at the ends of float64's range where the kind says so."""
    x = matrices(kind, b, m, n)
    ends = {"near overflow": 2.0**1010, "denormal": 2.0**-1060}
    return x / x.abs().amax() * ends[kind] if kind in ends else x


def brought_to_one(x):
    """x over a power of two, and its exponent."""
    exponent = int(torch.frexp(x.abs().amax()).exponent)
    return torch.ldexp(x, torch.tensor(-exponent)), exponent


def require_exact(x, values, left, right, bounds):
    """Every bound of the issue for float64: 35 ε, orthogonal, within the interval."""
    one, exponent = brought_to_one(x)
    sigma, low, high = (torch.ldexp(t, torch.tensor(-exponent)) for t in (values, *bounds))
    true = torch.linalg.svdvals(one)[:, : values.shape[1]]
    allowed = 35 * EPS64
    step = 2.0 ** (-1074 - exponent) if exponent < -900 else 0.0
    leading = torch.where(true[:, :1] > 0, true[:, :1], 1.0)
    assert ((sigma - true).abs() <= allowed * leading + step).all()
    slack = REFERENCE_ERROR * leading + step
    assert (low <= true + slack).all() and (true <= high + slack).all()
    assert (high - low <= 1e-11 * leading + 2 * step).all()
    assert (values.diff(dim=1) <= 0).all()
    if left is None:
        return
    size = max(x.shape[1:])
    rest = one @ right.mT - left * sigma[:, None, :]
    norm = torch.linalg.matrix_norm(one)
    assert (torch.linalg.matrix_norm(rest) <= allowed * size * norm + size * step).all()
    for q in (left.mT @ left, right @ right.mT):
        assert (q - torch.eye(q.shape[-1])).abs().amax() <= allowed * size
    assert (right.amax(2) >= (1 - 1e-12) * right.abs().amax(2)).all()


@pytest.mark.parametrize("effort", ["gram", "high"])
@pytest.mark.parametrize("kind", KINDS)
def test_float64_by_rotations(kind, effort):
    """One block of rows, two, and more; with vectors and without; all values and the first."""
    for m, n, k, near in (
        (1, 1, 1, True),
        (5, 3, 3, False),
        (33, 40, 33, True),
        (40, 33, 7, False),
        (70, 67, 67, True),
    ):
        x = exact_kind(kind, 2, m, n)
        values, left, right, bounds, checks, methods = factorized(
            x, k, effort=effort, near=near, threads=4
        )
        assert (methods == JACOBI).all()
        require_exact(x, values, left, right, bounds)
        assert (checks < 35 * EPS64 * max(m, n)).all()
        alone, _, _, bounds, _, methods = factorized(
            x, k, vectors=False, effort=effort, near=near, threads=4
        )
        assert (methods == JACOBI).all()
        require_exact(x, alone, None, None, bounds)


@pytest.mark.parametrize("kind", ["geometric", "clustered", "rank-deficient", "integer"])
def test_float64_by_rotations_off_the_chip(kind):
    x = exact_kind(kind, 1, 170, 180)
    values, left, right, bounds, _, methods = factorized(x, 170, near=False, threads=4)
    assert (methods == JACOBI).all()
    require_exact(x, values, left, right, bounds)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_small_values_of_scaled_rows_are_accurate_relative_to_themselves(dtype):
    """Rows of well-conditioned directions, lengths over 12 decades (half precision: 6)."""
    mpmath = pytest.importorskip("mpmath")
    lengths = torch.logspace(0, -6 if dtype == torch.float16 else -12, 9, dtype=torch.float64)
    x = (torch.randn(1, 9, 14, dtype=torch.float64) * lengths[:, None]).to(dtype)
    values, *_, methods = factorized(x, 9, effort="high", threads=4)
    with mpmath.workdps(60):
        true = mpmath.svd_r(mpmath.matrix(x[0].double().tolist()), compute_uv=False)
        errors = [float(abs(v - t) / t) for v, t in zip(values[0].tolist(), true, strict=True)]
    assert (methods == JACOBI).all()
    assert max(errors) < 100 * EPS64


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("dtype", "effort"),
    [
        (torch.float32, "gram"),
        (torch.float16, "gram"),
        (torch.bfloat16, "gram"),
        (torch.float32, "high"),
        (torch.float64, "gram"),
    ],
    ids=str,
)
def test_a_matrix_that_is_not_finite_is_marked(bad, dtype, effort):
    x = torch.randn(3, 6, 9).to(dtype)
    x[1, 2, 3] = bad
    values, left, right, *_, methods = factorized(x, 6, effort=effort)
    found = JACOBI if effort == "high" or dtype == torch.float64 else GRAM
    assert methods.tolist() == [found, -1, found]
    assert values[1].isnan().all() and values[[0, 2]].isfinite().all()
    assert (left[1] == 0).all() and (right[1] == 0).all()


def test_half_precision_below_its_normal_numbers():
    x = (torch.randn(2, 5, 8) * 2**-20).half()
    values, left, right, bounds, *_ = factorized(x, 5)
    require_values(x, values, bounds)
    require_factors(x, values, left, right)


def test_refused_arguments():
    with pytest.raises(ValueError, match="effort must be"):
        factorized(torch.randn(1, 4, 4), 4, effort="low")
    with pytest.raises(ValueError, match="too large"):
        factorized(torch.zeros(1, 513, 513), 1, vectors=False)
    with pytest.raises(ValueError, match="threads must be"):
        factorized(torch.randn(1, 4, 4), 4, threads=6)


def test_failed_matrices_are_repaired_together():
    """Every result of the repaired ones is torch's, and the others keep theirs."""
    from aniso.ops import batched_svd as op

    x = matrices("rank-deficient", 4, 9, 12).float()
    x[2] = torch.randn(9, 12)
    outputs = factorized(x, 9)
    kept = outputs[0][2].clone()
    assert outputs[-1].tolist() == [FAILED, FAILED, GRAM, FAILED]
    op._repair(x, outputs, op._by_torch)
    values, left, right, bounds, _, methods = outputs
    assert methods.tolist() == [3, 3, 0, 3] and torch.equal(values[2], kept)
    require_values(x, values, bounds)
    require_factors(x, values, left, right)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("m", "n"), [(1, 1), (5, 3), (33, 65), (65, 33), (128, 300), (400, 200), (512, 512), (512, 640)]
)
def test_on_a_gpu(kind, m, n):
    x = matrices(kind, 3, m, n).float()
    if aniso.select_backend("batched_svd", x.cuda()).name != "cuda":
        assert not _native.has_cuda or min(m, n) > _native.batched_svd_cuda_max_side()
        return
    result = aniso.svd(x.cuda())
    assert "torch" not in result.certificate.method
    u, s, vh = (t.cpu() for t in result)
    values, certificate = aniso.svdvals(x.cuda(), certificate=True)
    true = torch.linalg.svdvals(x.double())
    leading = torch.where(true[:, :1] > 0, true[:, :1], 1.0)
    tiny = 1.5e-45
    for found in (s, values.cpu()):
        assert ((found - true).abs() <= 6e-8 * leading + tiny).all()
    slack = REFERENCE_ERROR * true[:, :1]
    assert (certificate.lower.cpu() <= true + slack).all()
    assert (true <= certificate.upper.cpu() + slack).all()
    scale = x.double().abs().amax(dim=(1, 2)).clamp(min=1e-300)[:, None, None]
    rest = x.double() / scale - (u.double() * (s.double()[:, None, :] / scale)) @ vh.double()
    size = torch.linalg.matrix_norm(x.double() / scale) + (tiny / scale).flatten() * max(m, n)
    assert (torch.linalg.matrix_norm(rest) <= 35 * 1.2e-7 * max(m, n) * size).all()
    for q in (u.mT.double() @ u.double(), vh.double() @ vh.mT.double()):
        assert (q - torch.eye(q.shape[-1])).abs().amax() <= 35 * 1.2e-7 * max(m, n)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_on_a_gpu(dtype):
    x = torch.randn(300, 20, 44).to(dtype).cuda()
    values, certificate = aniso.svdvals(x, certificate=True)
    values = values.double()
    assert "torch" not in certificate.method
    true = torch.linalg.svdvals(x.double())
    assert ((values - true).abs() <= 6e-8 * true[:, :1]).all()
    u, s, vh = (t.double() for t in aniso.svd(x, k=5))
    rest = x.double() @ vh.mT - u * s[:, None, :]
    assert (torch.linalg.matrix_norm(rest) <= 1e-5 * true[:, 0]).all()


@pytest.mark.gpu
@pytest.mark.parametrize("accuracy", ["normal", "high"])
@pytest.mark.parametrize("kind", KINDS)
def test_rotations_on_a_gpu(kind, accuracy):
    for m, n in ((1, 1), (5, 3), (33, 65), (65, 33), (128, 300), (400, 200)):
        x = exact_kind(kind, 3, m, n)
        result = aniso.svd(x.cuda(), accuracy=accuracy)
        assert result.certificate.method == "jacobi"
        u, s, vh = (t.cpu() for t in result)
        bounds = torch.stack([result.certificate.lower.cpu(), result.certificate.upper.cpu()])
        require_exact(x, s, u, vh, bounds)
