from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from spectra import RANK_DEFICIENT, SPECTRA, with_spectrum
from torch import nn

import aniso
import aniso.ops.spectral_map  # registers its operators
from aniso import _native, reference
from aniso.errors import InputError
from aniso.ops import _spectral_map_torch as by_torch

SHAPES = [(1, 1), (1, 7), (7, 1), (3, 3), (8, 20), (20, 8), (33, 65), (65, 33)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SIDES = ["left", "right", "scattered"]
LENGTHS = (9, 5, 1, 0)


def ragged_mask(side, length=9):
    mask = torch.zeros(len(LENGTHS), length, dtype=torch.bool)
    for row, kept in enumerate(LENGTHS):
        places = {"left": range(length - kept, length), "right": range(kept)}
        chosen = torch.tensor(list(places.get(side, torch.randperm(length)[:kept])))
        mask[row, chosen.long()] = True
    return mask


def through_linalg(x, f):
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    return (u * f(s)[..., None, :]) @ vh


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_equals_the_reference(m, n, dtype):
    x = torch.randn(2, 3, m, n).to(dtype)
    y = aniso.spectral_map(x, torch.tanh)
    assert y.dtype == dtype and y.shape == x.shape
    for i in range(2):
        for j in range(3):
            true = reference.spectral_map(x[i, j], torch.tanh)
            allowed = 4 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-13
            assert (y[i, j] - true).abs().max() <= allowed * max(1.0, float(true.abs().max()))


@pytest.mark.parametrize("f", [torch.tanh, torch.sqrt, torch.log1p, lambda s: s**2 + 1])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (5, 5)])
def test_gradients_are_finite_differences(f, spectrum, shape):
    x = with_spectrum(SPECTRA[spectrum], *shape).requires_grad_()
    # The step must be short beside the smallest σ, over which √σ and s² + 1 turn.
    step = 1e-8 if spectrum == "small" else 1e-6
    assert torch.autograd.gradcheck(lambda t: aniso.spectral_map(t, f), x, eps=step, rtol=1e-3)


@pytest.mark.parametrize("spectrum", RANK_DEFICIENT)
@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (5, 5)])
def test_gradients_where_values_vanish(spectrum, shape):
    x = with_spectrum(RANK_DEFICIENT[spectrum], *shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: aniso.spectral_map(t, torch.tanh), x)
    for f in (torch.sqrt, torch.log, torch.cos):
        y = aniso.spectral_map(x, f)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        assert torch.isfinite(y).all() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
@pytest.mark.parametrize("f", [torch.tanh, torch.sqrt, torch.log1p])
def test_gradients_equal_autograd_through_linalg(shape, f):
    x = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    c = torch.randn(3, *shape, dtype=torch.float64)
    (ours,) = torch.autograd.grad((aniso.spectral_map(x, f) * c).sum(), x)
    (theirs,) = torch.autograd.grad((through_linalg(x, f) * c).sum(), x)
    assert (ours - theirs).abs().max() <= 1e-10 * theirs.abs().max()


def test_the_true_map_where_autograd_through_linalg_fails():
    """(X Xᵀ)^½ X is Σ², differentiable as a polynomial: an answer that needs no SVD."""
    x = with_spectrum([2.0, 2.0, 2.0 - 1e-13, 1.0], 4, 6).requires_grad_()
    c = torch.randn(4, 6, dtype=torch.float64)
    (ours,) = torch.autograd.grad((aniso.spectral_map(x, lambda s: s**3) * c).sum(), x)
    (true,) = torch.autograd.grad((x @ x.T @ x * c).sum(), x)
    assert (ours - true).abs().max() <= 1e-12 * true.abs().max()
    (theirs,) = torch.autograd.grad((through_linalg(x, lambda s: s**3) * c).sum(), x)
    assert not (theirs - true).abs().max() <= 1e-6 * true.abs().max()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("n", [4, 30])
def test_ragged_batches_are_their_sequences_alone(side, n):
    mask = ragged_mask(side)
    x = torch.randn(len(LENGTHS), 9, n)
    x[~mask] = float("nan")
    c = torch.randn_like(x)
    leaf = x.clone().requires_grad_()
    y = aniso.spectral_map(leaf, torch.tanh, mask=mask)
    (gradient,) = torch.autograd.grad(y, leaf, c)
    assert torch.equal(gradient[~mask], c[~mask])
    assert torch.equal(y[~mask].view(torch.int32), x[~mask].view(torch.int32))
    for i, keep in enumerate(mask):
        alone = x[i, keep].requires_grad_()
        single = aniso.spectral_map(alone, torch.tanh)
        (expected,) = torch.autograd.grad(single, alone, c[i, keep])
        for found, true in ((y[i, keep], single), (gradient[i, keep], expected)):
            assert (found - true).norm() <= 1e-5 * true.norm()


def test_left_and_right_padding_are_one_matrix():
    x = torch.randn(3, 6, 10)
    right = torch.zeros(3, 9, 10).index_copy(1, torch.arange(6), x)
    left = torch.zeros(3, 9, 10).index_copy(1, torch.arange(3, 9), x)
    kept = (torch.arange(9) < 6).expand(3, 9)
    a = aniso.spectral_map(right, torch.sqrt, mask=kept)[:, :6]
    b = aniso.spectral_map(left, torch.sqrt, mask=kept.flip(1))[:, 3:]
    assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_masked_gradients_of_deficient_rows(shape):
    """Fewer independent rows than kept rows, in a padded matrix: every null space takes part."""
    x = torch.randn(2, *shape, dtype=torch.float64)
    x[:, 1] = x[:, 0]
    mask = torch.ones(2, shape[0], dtype=torch.bool)
    mask[0, 4:] = False
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: aniso.spectral_map(t, torch.tanh, mask=mask), x)


def test_parameters_of_f_are_trained():
    power = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, p: aniso.spectral_map(t, lambda s: s**p), (x, power))


def test_parameters_see_no_null_space():
    """u_iᵀC v_i of directions with σ = 0 depends on which of them the factors name."""
    x = with_spectrum([4.0, 2.0, 0.0, 0.0], 5, 8).requires_grad_()
    c, shift = torch.randn(5, 8).double(), torch.zeros((), dtype=torch.float64, requires_grad=True)
    y = aniso.spectral_map(x, lambda s: s + shift)
    (slope,) = torch.autograd.grad((y * c).sum(), shift)
    u, _, vh = torch.linalg.svd(x.detach(), full_matrices=False)
    assert float(slope) == pytest.approx(float((u[:, :2].T @ c @ vh[:2].T).trace()), rel=1e-9)


def test_null_spaces_count_whichever_basis_they_have():
    x = with_spectrum([4.0, 2.0, 0.0, 0.0, 0.0], 5, 8, batch=(1,))
    c = torch.randn_like(x)
    u, s, vh = torch.ops.aniso.spectral_factors(x, None)
    decay = 1 - s.tanh() ** 2
    slopes = (decay, -2 * s.tanh() * decay, torch.ones(1).double(), None)
    turned_u, turned_vh = u.clone(), vh.clone()
    turned_u[:, :, 2:] = u[:, :, 2:] @ torch.linalg.qr(torch.randn(3, 3).double()).Q
    turned_vh[:, 2:] = torch.linalg.qr(torch.randn(3, 3).double()).Q @ vh[:, 2:]
    for backward in (torch.ops.aniso.spectral_map_backward, backward_by_torch):
        dx, dvalues = backward(c, None, None, u, s, vh, s.tanh(), *slopes)
        other, others = backward(c, None, None, turned_u, s, turned_vh, s.tanh(), *slopes)
        assert torch.allclose(dx, other, rtol=1e-12, atol=1e-12)
        assert torch.allclose(dvalues[:, :2], others[:, :2], rtol=1e-12)
        assert not torch.allclose(dvalues[:, 2:], others[:, 2:], rtol=1e-3)


def test_other_arrays_and_empty_ones():
    x = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)
    y = aniso.spectral_map(x, torch.tanh)
    assert isinstance(y, np.ndarray)
    assert np.allclose(y, reference.spectral_map(torch.tensor(x), torch.tanh), atol=1e-6)
    for shape in ((0, 4, 5), (2, 0, 5), (2, 5, 0), (0, 0)):
        empty = torch.randn(shape, requires_grad=True)
        y = aniso.spectral_map(empty, torch.tanh)
        assert y.shape == shape
        y.sum().backward()
        mask = torch.ones(shape[:-1], dtype=torch.bool)
        assert aniso.spectral_map(empty, torch.tanh, mask=mask).shape == shape


def test_not_contiguous_input():
    x = torch.randn(7, 5, 3).permute(2, 1, 0)
    assert torch.allclose(
        aniso.spectral_map(x, torch.tanh), aniso.spectral_map(x.contiguous(), torch.tanh)
    )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_operators_follow_the_rules_of_torch(masked, shape):
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, shape[0]) < 0.7 if masked else None
    torch.library.opcheck(torch.ops.aniso.spectral_factors.default, (x.detach(), mask))
    u, s, vh = torch.ops.aniso.spectral_factors(x.detach(), mask)
    values = s.sqrt().requires_grad_()
    derivative, curvature, top = torch.rand(3, 2, 5, dtype=torch.float64)
    defined = torch.tensor([True, False])
    rest = (mask, defined, u, s, vh, values, derivative, curvature, top[:, 0], top)
    torch.library.opcheck(torch.ops.aniso.spectral_map.default, (x, *rest))
    backward = (x.detach(), *(None if t is None else t.detach() for t in rest))
    torch.library.opcheck(torch.ops.aniso.spectral_map_backward.default, backward)
    parameters_only = (*backward[:7], None, None, None, None)
    torch.library.opcheck(torch.ops.aniso.spectral_map_backward.default, parameters_only)


def test_compiles_without_graph_breaks():
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    power = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)

    def loss(t, p):
        return aniso.spectral_map(t, lambda s: s**p, mask=mask).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(x, power), (x, power))
    for found, true in zip(
        torch.autograd.grad(compiled(x, power), (x, power)), expected, strict=True
    ):
        assert torch.allclose(found, true, rtol=1e-12)


def test_a_gradient_of_the_gradient_is_refused():
    x = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    for y in (aniso.spectral_map(x, torch.tanh), aniso.soft_decay(x, -0.5)):
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(InputError, match="differentiable once"):
            gradient.square().sum().backward()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("spectrum", {**SPECTRA, **RANK_DEFICIENT})
@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_kernels_equal_the_operations_of_torch(shape, spectrum, masked):
    """Either by its own factors: the signs of vectors and bases of null spaces are free."""
    x = with_spectrum({**SPECTRA, **RANK_DEFICIENT}[spectrum], *shape, batch=(3,))
    mask = torch.arange(shape[0]) < torch.tensor([[shape[0]], [3], [0]]) if masked else None
    defined, c = torch.tensor([True, True, False]), torch.randn_like(x)
    results = []
    ops = torch.ops.aniso
    for factors, backward in (
        (ops.spectral_factors, ops.spectral_map_backward),
        (by_torch.factors, backward_by_torch),
    ):
        u, s, vh = factors(x, mask)
        top = torch.tensor([0.5, 0, 0, 0, 0], dtype=torch.float64).expand(3, 5).contiguous()
        decay = 1 - s.tanh() ** 2
        slopes = (decay, -2 * s.tanh() * decay, torch.ones(3).double(), top)
        gradients = backward(c, mask, defined, u, s, vh, s.tanh(), *slopes)
        # The basis of a null space is free: its u_iᵀC v_i have no one answer, and are not used.
        results.append((s, gradients[0], gradients[1] * (s > 0)))
    y = by_torch.mapped(x, mask, defined, u, vh, s.tanh())
    rest = (u, s, vh, s.tanh(), None, None, None, None)
    assert torch.allclose(ops.spectral_map(x, mask, defined, *rest), y, atol=1e-9)
    for found, true in zip(*results, strict=True):
        assert torch.allclose(found, true, rtol=1e-9, atol=1e-9)


def backward_by_torch(grad, mask, defined, u, s, vh, values, *slopes):
    return by_torch.gradients(grad, mask, defined, (u, s, vh), values, slopes)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(isa, dtype, monkeypatch):
    x = (3 * torch.randn(3, 37, 50)).to(dtype)
    mask = torch.arange(37) < torch.tensor([[37], [20], [0]])
    leaf, c = x.clone().requires_grad_(), torch.randn(3, 37, 50).to(dtype)
    expected = torch.autograd.grad(aniso.spectral_map(leaf, torch.tanh, mask=mask), leaf, c)[0]
    module = sys.modules["aniso.ops.spectral_map"]
    monkeypatch.setattr(module, "_kernel", lambda x: {"threads": 2, "isa": isa})
    known = ("baseline", "avx2", "avx512")
    if known.index(isa) > known.index(_native.isa):
        with pytest.raises(ValueError, match=isa):
            aniso.spectral_map(leaf, torch.tanh, mask=mask)
        return
    y = aniso.spectral_map(leaf, torch.tanh, mask=mask)
    (found,) = torch.autograd.grad(y, leaf, c)
    eps = 1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps
    assert (found - expected).double().norm() <= 8 * eps * expected.double().norm()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_that_no_gradient_touches_keep_their_bits(dtype):
    """Rows outside the mask, whatever they hold, and incoming gradients of any strides."""
    x = torch.randn(2, 6, 9).to(dtype)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 4:] = mask[1, :3] = False
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    x[~mask] = torch.full((), -1, dtype=bits).view(dtype)  # a NaN with every bit set
    y = aniso.spectral_map(x, torch.tanh, mask=mask)
    assert torch.equal(y[~mask].view(bits), x[~mask].view(bits))
    leaf = torch.randn(2, 6, 9).to(dtype).requires_grad_()
    y = aniso.spectral_map(leaf, torch.tanh, mask=mask)
    c = torch.randn(9, 6, 2).to(dtype)
    (turned,) = torch.autograd.grad(y, leaf, c.permute(2, 1, 0), retain_graph=True)
    (plain,) = torch.autograd.grad(y, leaf, c.permute(2, 1, 0).contiguous(), retain_graph=True)
    assert torch.equal(turned, plain)
    (wide,) = torch.autograd.grad(y, leaf, torch.ones((), dtype=dtype).expand(y.shape))
    assert torch.isfinite(wide).all() and torch.equal(wide[~mask], torch.ones_like(wide[~mask]))


@pytest.mark.parametrize("gap", [0.0, 1e-13, 1e-9, 1e-6])
def test_a_jump_between_two_near_values_counts(gap):
    """Across the jump of s·(s > 2) the slope is its height over the gap, 0 without a gap."""
    x = with_spectrum([3.0, 2.0 + gap, 2.0, 1.0], 4, 6)[None]
    c = torch.randn_like(x)
    u, s, vh = torch.ops.aniso.spectral_factors(x, None)
    kept = torch.tensor([[True, True, False, False]])
    g, d = torch.where(kept, s, 0.0), kept.double()
    rest = (u, s, vh, g, d, torch.zeros_like(s), torch.zeros(1).double(), None)
    dx, _ = torch.ops.aniso.spectral_map_backward(c, None, None, *rest)
    p = u[0].T @ c[0] @ vh[0].T
    inner = u[0].T @ dx[0] @ vh[0].T
    true_gap = float(s[0, 1] - s[0, 2])
    minus = float(s[0, 1]) / true_gap if true_gap > 0 else 0.0
    plus = float(s[0, 1] / (s[0, 1] + s[0, 2]))
    expected = (minus * (p[1, 2] + p[2, 1]) + plus * (p[1, 2] - p[2, 1])) / 2
    assert float(inner[1, 2]) == pytest.approx(float(expected), rel=1e-6)


def test_inference_mode_gives_the_same():
    x = torch.randn(2, 4, 6)
    with torch.inference_mode():
        y = aniso.spectral_map(x, torch.tanh)
    assert torch.equal(y, aniso.spectral_map(x.requires_grad_(), torch.tanh))


@pytest.mark.parametrize("shape", [(9, 40), (40, 9)])
def test_what_an_earlier_call_left_in_the_scratch_does_not_count(shape):
    x = torch.randn(2, *shape, requires_grad=True)
    mask = torch.arange(shape[0]) < torch.tensor([[shape[0]], [5]])

    def results():
        y = aniso.spectral_map(x, torch.tanh, mask=mask)
        return y.detach(), *torch.autograd.grad(y.sum(), x)

    expected = results()
    with pytest.raises(aniso.InputError):
        aniso.spectral_map(torch.full((4, 60, 60), torch.nan), torch.tanh)
    for found, true in zip(results(), expected, strict=True):
        assert torch.equal(found, true)


def test_bad_input_is_named():
    x = torch.randn(3, 4, 5)
    x[1, 2, 0] = float("inf")
    with pytest.raises(InputError, match=r"matrix \[1\] of x has NaN.* mask rows"):
        aniso.spectral_map(x, torch.tanh)
    with pytest.raises(InputError, match="matrices are"):
        aniso.spectral_map(torch.randn(4), torch.tanh)
    with pytest.raises(InputError, match="dtype int64"):
        aniso.spectral_map(torch.ones(4, 4, dtype=torch.int64), torch.tanh)
    with pytest.raises(InputError, match=r"must be bool \[3, 4\]"):
        aniso.spectral_map(x, torch.tanh, mask=torch.ones(3, 4))
    with pytest.raises(InputError, match="must be elementwise"):
        aniso.spectral_map(torch.randn(4, 5), lambda s: s.sum())


def test_backend_is_that_of_the_decomposition():
    x = torch.randn(4, 5)
    assert aniso.select_backend("spectral_map", x) == aniso.select_backend("batched_svd", x)
