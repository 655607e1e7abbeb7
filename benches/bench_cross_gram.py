"""cross_gram against the same product by torch: in float64, and in float32 without its accuracy."""

from __future__ import annotations

import torch
from registry import Case, side_by_side

import aniso

_ROWS, _DIM = 20_000, 384


def make(device: str) -> torch.Tensor:
    """Both sources side by side, with a common offset: [n, 2d]."""
    torch.manual_seed(0)
    return torch.randn(_ROWS, 2 * _DIM, device=device) + 0.3


def ours(x: torch.Tensor) -> torch.Tensor:
    """The second moments of the two halves."""
    return aniso.cross_gram(x[:, :_DIM], x[:, _DIM:])


def torch_float64(x: torch.Tensor) -> torch.Tensor:
    """What one writes in torch for the same accuracy."""
    wide = x.double()
    return wide[:, :_DIM].T @ wide[:, _DIM:]


def torch_float32(x: torch.Tensor) -> torch.Tensor:
    """What one writes in torch without a thought for accuracy."""
    return x[:, :_DIM].T @ x[:, _DIM:]


def error(found: torch.Tensor, x: torch.Tensor) -> float:
    """Largest error against the plain float64 product, relative to the largest entry."""
    exact = torch_float64(x)
    return float((found - exact).abs().max() / exact.abs().max())


test_cross_gram = side_by_side(
    Case(
        op="cross_gram",
        shape=f"{_ROWS}x{_DIM}x{_DIM} float32",
        make=make,
        ours=ours,
        peers={"torch float64": torch_float64, "torch float32": torch_float32},
        error=error,
        tolerance=1e-12,
    )
)
