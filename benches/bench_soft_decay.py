"""soft_decay forward and backward against autograd through torch.linalg.svd."""

from __future__ import annotations

import torch
from registry import Case, side_by_side

import aniso

_SHAPE = (8, 128, 768)
_ALPHA = -0.6


def make(device: str) -> torch.Tensor:
    """Hidden states of 8 sequences, with a common offset and dimensions of unequal size."""
    torch.manual_seed(0)
    scale = torch.logspace(0, -1, _SHAPE[2], device=device)
    x = torch.randn(_SHAPE, device=device) * scale + 0.3
    return x.requires_grad_()


def gradient(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The gradient of ⟨C, Y⟩ for a fixed C that favours no direction."""
    c = torch.linspace(-1, 1, y.numel(), device=y.device, dtype=y.dtype).cos().view_as(y)
    return torch.autograd.grad(y, x, c)[0]


def ours(x: torch.Tensor) -> torch.Tensor:
    """Forward and backward."""
    return gradient(aniso.soft_decay(x, _ALPHA), x)


def through_linalg(x: torch.Tensor) -> torch.Tensor:
    """What one writes in torch, in x's dtype."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    f = -torch.log(1 - _ALPHA * (s + _ALPHA)) / _ALPHA
    scale = s[:, :1] / f[:, :1]
    return gradient((u * (scale * f)[:, None, :]) @ vh, x)


def error(found: torch.Tensor, x: torch.Tensor) -> float:
    """Error of the gradient against autograd in float64, relative in norm."""
    wide = x.detach().double().requires_grad_()
    exact = through_linalg(wide)
    return float((found - exact).norm() / exact.norm())


test_soft_decay = side_by_side(
    Case(
        op="spectral_map",
        shape="8x128x768 float32, soft_decay forward and backward",
        make=make,
        ours=ours,
        peers={"autograd through torch.linalg.svd": through_linalg},
        error=error,
        tolerance=1e-5,
        goals={"autograd through torch.linalg.svd": 6.0},
    )
)
