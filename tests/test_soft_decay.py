from __future__ import annotations

import math

import pytest
import torch
from spectra import RANK_DEFICIENT, SPECTRA, with_spectrum
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import aniso
from aniso import reference
from aniso.errors import InputError

MODES = ["paper", "continuous"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def decay(x, alpha, mode):
    """As a user would write it, for autograd through torch.linalg.svd."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    f = -torch.log(1 - alpha * (s + alpha)) / alpha
    if mode == "continuous":
        f = f + torch.log(1 - alpha**2) / alpha
    k = s[..., :1] / f[..., :1]
    return (u * (k * f)[..., None, :]) @ vh


def number(alpha):
    return torch.tensor(alpha, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (16, 40), (40, 16)])
def test_equals_the_reference(shape, dtype, mode):
    x = (3 * torch.randn(3, *shape) + 1).to(dtype)
    for alpha in (-0.05, -0.6, -0.95):
        y = aniso.soft_decay(x, alpha, mode=mode)
        assert y.dtype == dtype
        for found, rows in zip(y, x, strict=True):
            true = reference.soft_decay(rows, alpha, mode)
            eps = 100 * torch.finfo(dtype).eps if dtype == torch.float64 else torch.finfo(dtype).eps
            assert (found - true).abs().max() <= 4 * eps * true.abs().max()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_gradients_are_finite_differences(spectrum, shape, mode):
    # K follows σ₁ alone, which has no derivative where it repeats: the rest of the spectrum may.
    values = [SPECTRA[spectrum][0] + 2, *SPECTRA[spectrum][:4]]
    x = with_spectrum(values, *shape).requires_grad_()
    step = 1e-8 if spectrum == "small" else 1e-6
    assert torch.autograd.gradcheck(
        lambda t, a: aniso.soft_decay(t, a, mode=mode), (x, number(-0.5)), eps=step, rtol=1e-3
    )


@pytest.mark.parametrize("spectrum", RANK_DEFICIENT)
@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_gradients_where_values_vanish(spectrum, shape):
    values = [6.0, *RANK_DEFICIENT[spectrum][:4]]
    x, alpha = with_spectrum(values, *shape).requires_grad_(), number(-0.5)
    assert torch.autograd.gradcheck(
        lambda t, a: aniso.soft_decay(t, a, mode="continuous"), (x, alpha)
    )
    y = aniso.soft_decay(x, alpha, mode="paper")
    gradients = torch.autograd.grad(y.square().sum(), (x, alpha))
    assert all(torch.isfinite(t).all() for t in (y, *gradients))
    assert torch.allclose(y, reference.soft_decay(x.detach(), -0.5))


@pytest.mark.parametrize("mode", MODES)
def test_gradients_where_the_largest_value_repeats_follow_one_of_them(mode):
    """With K held the map is smooth there; dK goes along u₁v₁ᵀ, a subgradient of σ₁."""
    x = with_spectrum([3.0, 3.0, 3.0, 1.0], 4, 7).requires_grad_()
    c = torch.randn(4, 7, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((aniso.soft_decay(x, -0.5, mode=mode) * c).sum(), x)
    at_zero = 0.0 if mode == "paper" else 2 * math.log(0.75)
    f, slope = 2 * math.log(2.25) - at_zero, 1 / 2.25
    k = 3 / f

    def held(t):
        return aniso.spectral_map(t, lambda s: k * (2 * torch.log(1 + (s - 0.5) / 2) - at_zero))

    (smooth,) = torch.autograd.grad((held(x) * c).sum(), x)
    rest = gradient - smooth
    size = (c * held(x)).sum() / k * (1 / f - 3 * slope / f**2)
    assert torch.linalg.matrix_rank(rest, rtol=1e-9) == 1
    assert torch.allclose(torch.linalg.matrix_norm(rest), size.abs())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (9, 9)])
def test_gradients_equal_autograd_through_linalg(shape, mode):
    x = 2 * torch.randn(2, *shape, dtype=torch.float64)
    c, alpha = torch.randn_like(x), number(-0.6)
    x.requires_grad_()
    ours = torch.autograd.grad((aniso.soft_decay(x, alpha, mode=mode) * c).sum(), (x, alpha))
    theirs = torch.autograd.grad((decay(x, alpha, mode) * c).sum(), (x, alpha))
    for found, true in zip(ours, theirs, strict=True):
        assert (found - true).abs().max() <= 1e-10 * true.abs().max()


def test_the_written_gradient_of_alpha():
    """dα = Σ P_ii K ∂f_i/∂α − ⟨C, U f Vᵀ⟩ σ₁/f₁² ∂f₁/∂α, ∂f/∂α = (s + 2α)/(αD) + ln D/α²."""
    x, c = torch.randn(2, 6, 9, dtype=torch.float64) * 2
    alpha = number(-0.3)
    (found,) = torch.autograd.grad((aniso.soft_decay(x, alpha) * c).sum(), alpha)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    a = alpha.detach()
    d = 1 - a * (s + a)
    f, df = -d.log() / a, (s + 2 * a) / (a * d) + d.log() / a**2
    p = (u.T @ c @ vh.T).diagonal()
    assert torch.allclose(
        found, (p * df).sum() * s[0] / f[0] - (p * f).sum() * s[0] / f[0] ** 2 * df[0]
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("n", [4, 30])
def test_ragged_batches_are_their_sequences_alone(side, n, mode):
    lengths = torch.tensor([9, 6, 1, 0])
    mask = torch.arange(9) < lengths[:, None]
    mask = mask.flip(1) if side == "left" else mask
    x, c = 3 * torch.randn(4, 9, n), torch.randn(4, 9, n)
    x[~mask] = float("nan")
    leaf, alpha = x.clone().requires_grad_(), number(-0.4)
    y = aniso.soft_decay(leaf, alpha, mode=mode, mask=mask)
    gradients = torch.autograd.grad(y, (leaf, alpha), c)
    assert torch.equal(y[~mask].view(torch.int32), x[~mask].view(torch.int32))
    assert torch.equal(gradients[0][~mask], c[~mask])
    total = 0.0
    for i, keep in enumerate(mask):
        alone = x[i, keep].requires_grad_()
        single = aniso.soft_decay(alone, alpha, mode=mode)
        expected = torch.autograd.grad(single, (alone, alpha), c[i, keep])
        for found, true in ((y[i, keep], single), (gradients[0][i, keep], expected[0])):
            assert (found - true).norm() <= 1e-5 * true.norm()
        total += float(expected[1])
    assert float(gradients[1]) == pytest.approx(total, rel=1e-5)


def test_the_largest_value_stays_and_continuous_order_too():
    x = with_spectrum([7.0, 3.0, 0.4, 0.01], 6, 9)
    for mode in MODES:
        s = torch.linalg.svdvals(aniso.soft_decay(x, -0.7, mode=mode))
        assert s[0] == pytest.approx(7.0)
    assert (s[1:4] > torch.tensor([3.0, 0.4, 0.01])).all() and (s.diff() <= 0).all()


def test_paper_mode_flips_signs_and_counts_them():
    x = torch.diag(torch.tensor([5.0, 0.7, 0.5, 0.3, 0.0]))
    batch = torch.stack([x, 2 * x, x / 10, 0 * x])
    y, flips = aniso.soft_decay(batch, -0.6, flips=True)
    assert flips.dtype == torch.int64 and flips.tolist() == [2, 0, 0, 0]
    assert (y[0].diagonal() < 0).tolist() == [False, False, True, True, False]
    y, flips = aniso.soft_decay(batch, -0.6, mode="continuous", flips=True)
    assert flips.tolist() == [0, 0, 0, 0] and not (y < -1e-6).any()
    layer = aniso.SoftDecay(-0.6)
    layer(batch)
    assert layer.flips.tolist() == [2, 0, 0, 0]


@pytest.mark.parametrize("mode", MODES)
def test_without_a_positive_factor_matrices_stay_as_they_are(mode):
    """σ₁ = 0, or σ₁ ≤ |α| in paper mode, where f(σ₁) ≤ 0."""
    x = torch.zeros(3, 4, 6, dtype=torch.float64)
    x[1, 0, 0], x[2, 0, 0] = 0.6, 0.7
    x.requires_grad_()
    c, alpha = torch.randn_like(x), number(-0.6)
    y = aniso.soft_decay(x, alpha, mode=mode)
    gradients = torch.autograd.grad(y, (x, alpha), c)
    same = 2 if mode == "paper" else 1
    assert torch.equal(y[:same], x[:same]) and torch.equal(gradients[0][:same], c[:same])
    assert float(y[2, 0, 0].detach()) == pytest.approx(0.7) and torch.isfinite(gradients[1])


def test_alpha_in_its_interval_only():
    x = torch.randn(4, 6)
    for alpha in (0.0, -1.0, 0.3, -2.0, float("nan"), torch.tensor(-1.5)):
        with pytest.raises(InputError, match="needs −1 < alpha < 0"):
            aniso.soft_decay(x, alpha)
    with pytest.raises(InputError, match="needs −1 < alpha < 0"):
        aniso.SoftDecay(-1.0)
    with pytest.raises(InputError, match="must be one number"):
        aniso.soft_decay(x, torch.full((2,), -0.5))
    with pytest.raises(InputError, match="mode is 'smooth'"):
        aniso.soft_decay(x, mode="smooth")
    with pytest.raises(InputError, match="top is -1"):
        aniso.AllButTheTop(-1)


def test_a_trained_alpha_learns_and_stays_inside():
    """From −0.2 back to the α = −0.8 that made the target; then a step that would leave (−1, 0)."""
    x = 4 * torch.randn(2, 8, 12, dtype=torch.float64)
    target = aniso.soft_decay(x, -0.8)
    layer = aniso.SoftDecay(-0.2, trainable=True)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        (layer(x) - target).square().sum().backward()
        optimizer.step()
    assert float(layer.alpha.detach()) == pytest.approx(-0.8, abs=0.01)
    with torch.no_grad():
        layer.theta.add_(9.0)
    assert torch.isfinite(layer(x)).all()
    assert list(layer.state_dict()) == ["theta"] and not aniso.SoftDecay().state_dict()
    assert "alpha=-0.6, mode='paper', trainable=False" in repr(aniso.SoftDecay())
    assert "trainable=True" in repr(layer)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.decay = aniso.SoftDecay(-0.5, trainable=True)

    def forward(self, x, mask=None):
        return self.decay(self.inner(x), mask)


def gradients_of(net, run):
    net.zero_grad()
    run().square().sum().backward()
    return [p.grad.clone() for p in net.parameters()]


def test_under_autocast_and_checkpointing():
    net, x = Net(), torch.randn(3, 5, 6)
    mask = torch.arange(5) < torch.tensor([[5], [3], [1]])
    plain = gradients_of(net, lambda: net(x, mask))
    again = gradients_of(net, lambda: checkpoint(net, x, mask, use_reentrant=False))
    for found, true in zip(again, plain, strict=True):
        assert torch.equal(found, true)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x, mask)
    assert y.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients_of(net, lambda: net(x, mask).float())
    for found, true in zip(rounded, plain, strict=True):
        assert (found - true).norm() <= 0.1 * true.norm()


@pytest.mark.parametrize("mode", MODES)
def test_compiles_without_graph_breaks(mode):
    net, x = Net(), 2 * torch.randn(3, 5, 6)
    net.decay.mode = mode
    mask = torch.arange(5) < torch.tensor([[5], [3], [1]])
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    plain = gradients_of(net, lambda: net(x, mask))
    flips = net.decay.flips
    for found, true in zip(gradients_of(net, lambda: compiled(x, mask)), plain, strict=True):
        assert torch.allclose(found, true, rtol=1e-5)
    assert torch.equal(net.decay.flips, flips)


def test_under_distributed_data_parallel(tmp_path):
    net, x = Net(), torch.randn(3, 5, 6)
    plain = gradients_of(net, lambda: net(x))
    distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(net)
        for found, true in zip(gradients_of(net, lambda: parallel(x)), plain, strict=True):
            assert torch.allclose(found, true, rtol=1e-6)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("shape", [(9, 20), (20, 9)])
def test_whitening(shape):
    x = (5 + 3 * torch.randn(2, *shape)).requires_grad_()
    mask = torch.ones(2, shape[0], dtype=torch.bool)
    mask[1, -3:] = False
    y = aniso.Whitening()(x, mask)
    assert torch.equal(y[~mask], x[~mask])
    for rows, keep in zip(y.detach().double(), mask, strict=True):
        rows = rows[keep]
        covariance = rows.T @ rows / len(rows)
        rank = min(len(rows) - 1, shape[1])
        expected = torch.tensor([1.0] * rank + [0.0] * (shape[1] - rank)).double()
        assert rows.mean(dim=0).abs().max() < 1e-5
        assert torch.allclose(torch.linalg.eigvalsh(covariance).flip(0), expected, atol=1e-5)
    x64 = x.detach().double().requires_grad_()
    if shape[0] > shape[1]:
        assert torch.autograd.gradcheck(lambda t: aniso.Whitening()(t, mask), x64)
    (gradient,) = torch.autograd.grad(aniso.Whitening()(x64, mask).square().sum(), x64)
    assert torch.isfinite(gradient).all()


def test_all_but_the_top():
    x = torch.randn(2, 8, 6, dtype=torch.float64) + 4
    y = aniso.AllButTheTop(2)(x)
    for found, rows in zip(y, x, strict=True):
        centred = rows - rows.mean(dim=0)
        top = torch.linalg.svd(centred).Vh[:2]
        assert torch.allclose(found, centred - centred @ top.T @ top)
    mask = torch.arange(8) < torch.tensor([[8], [5]])
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda t: aniso.AllButTheTop(2)(t, mask), x)
    tied = with_spectrum([2.0, 2.0, 1.0], 4, 6).requires_grad_()
    tied = tied - tied.mean(dim=0)
    (gradient,) = torch.autograd.grad(aniso.AllButTheTop(1)(tied).sum(), tied)
    assert torch.isfinite(gradient).all()
    assert not aniso.AllButTheTop(6)(x).any()


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(9, 40), (40, 9)])
def test_gpu_equals_reference_and_cpu(shape, dtype, mode):
    x, c = (3 * torch.randn(3, *shape)).to(dtype), torch.randn(3, *shape).to(dtype)
    mask = torch.arange(shape[0]) < torch.tensor([[shape[0]], [5], [0]])
    # α stays on the CPU: a transform that was not moved with its model.
    layer = aniso.SoftDecay(-0.5, mode=mode, trainable=True)
    results = []
    for device in ("cpu", "cuda"):
        leaf = x.to(device).requires_grad_()
        y = layer(leaf, mask.to(device))
        gradients = torch.autograd.grad(y, (leaf, layer.theta), c.to(device))
        results.append([t.detach().cpu().double() for t in (y, *gradients, layer.flips)])
    eps = max(torch.finfo(dtype).eps, 1e-12)
    for found, true in zip(results[1], results[0], strict=True):
        assert (found - true).norm() <= 100 * eps * true.norm()
    for found, rows, keep in zip(results[1][0], x, mask, strict=True):
        true = reference.soft_decay(rows, -0.5, mode, keep)
        assert (found - true).norm() <= 100 * eps * true.norm()
