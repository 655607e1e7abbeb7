"""soft_decay, forward and with its gradient, against autograd through torch.linalg."""

from __future__ import annotations

from functools import cache, partial

import torch
from registry import DEVICE, Case, side_by_side

import aniso

_ALPHA = -0.6


def make(shape: tuple[int, int, int], device: str) -> torch.Tensor:
    """Hidden states of sequences, with a common offset and dimensions of unequal size."""
    torch.manual_seed(0)
    scale = torch.logspace(0, -1, shape[2], device=device)
    x = torch.randn(shape, device=device) * scale + 0.3
    return x.requires_grad_()


@cache
def incoming(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A fixed C that favours no direction; made once, it is no part of what is timed."""
    c = torch.linspace(-1, 1, shape[1:].numel(), device=device, dtype=dtype).cos()
    return c.view(shape[1:]).expand(shape)


def gradient(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The gradient of ⟨C, Y⟩."""
    return torch.autograd.grad(y, x, incoming(y.shape, y.dtype, y.device))[0]


def forward(x: torch.Tensor) -> torch.Tensor:
    """What inference runs."""
    return aniso.soft_decay(x.detach(), _ALPHA)


def both(x: torch.Tensor) -> torch.Tensor:
    """Forward and backward."""
    return gradient(aniso.soft_decay(x, _ALPHA), x)


def _decayed(u: torch.Tensor, s: torch.Tensor, vh: torch.Tensor) -> torch.Tensor:
    f = -torch.log(1 - _ALPHA * (s + _ALPHA)) / _ALPHA
    scale = s[:, :1] / f[:, :1]
    return (u * (scale * f)[:, None, :]) @ vh


def by_linalg(x: torch.Tensor) -> torch.Tensor:
    """What one writes in torch, in x's dtype."""
    return _decayed(*torch.linalg.svd(x, full_matrices=False))


def by_eigh(x: torch.Tensor) -> torch.Tensor:
    """The same from a float64 Gram matrix: what is fast in torch on a GPU."""
    wide = x.double()
    values, u = torch.linalg.eigh(wide @ wide.mT)
    s, u = values.flip(1).clamp(min=0).sqrt(), u.flip(2)
    return _decayed(u, s, u.mT @ wide / s[:, :, None]).to(x.dtype)


def forward_error(found: torch.Tensor, x: torch.Tensor) -> float:
    """Error of the first matrices against torch.linalg.svd in float64, relative in norm."""
    exact = by_linalg(x[:8].detach().double())
    return float((found[:8] - exact).norm() / exact.norm())


def gradient_error(found: torch.Tensor, x: torch.Tensor) -> float:
    """The same of the gradient, against autograd."""
    wide = x[:8].detach().double().requires_grad_()
    exact = gradient(by_linalg(wide), wide)
    return float((found[:8] - exact).norm() / exact.norm())


_SHAPE = (8, 128, 768) if DEVICE == "cpu" else (256, 512, 768)
_NAME = "x".join(map(str, _SHAPE)) + " float32, soft_decay"
_PEER = ("torch.linalg.svd", by_linalg) if DEVICE == "cpu" else ("float64 Gram and eigh", by_eigh)

test_soft_decay = side_by_side(
    Case(
        op="spectral_map",
        shape=f"{_NAME} forward",
        make=partial(make, _SHAPE),
        ours=forward,
        peers={_PEER[0]: lambda x: _PEER[1](x.detach())},
        error=forward_error,
        tolerance=1e-5,
    ),
    Case(
        op="spectral_map",
        shape=f"{_NAME} forward and backward",
        make=partial(make, _SHAPE),
        ours=both,
        peers={f"autograd through {_PEER[0]}": lambda x: gradient(_PEER[1](x), x)},
        error=gradient_error,
        tolerance=1e-5,
        goals={f"autograd through {_PEER[0]}": 6.0} if DEVICE == "cpu" else {},
    ),
)
