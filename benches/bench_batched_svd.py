"""svdvals, svd and the top of it against torch.linalg on the shapes of transformers' sequences.

The goals are geometric means over the four shapes: 10 for values, 6 for vectors, 12 for the top.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from registry import DEVICE, Case, side_by_side

import aniso

if TYPE_CHECKING:
    from collections.abc import Callable

_SHAPES = ((64, 128, 768), (256, 32, 384), (16, 512, 768), (8, 512, 4096))
_TOP = 16


def make(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Random matrices whose values fall by two orders of magnitude, as those of sequences do."""
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    x *= torch.logspace(0, -2, shape[2], dtype=torch.float64)
    return x.to(device, dtype)


def value_error(values: Any, x: torch.Tensor) -> float:
    """Largest |σ̂ - σ|/σ₁ against float64."""
    true = torch.linalg.svdvals(x.double())[..., : values.shape[-1]]
    return float(((values.double() - true).abs() / true[:, :1]).amax())


def factor_error(factors: Any, x: torch.Tensor) -> float:
    """Largest ‖A V - U S‖_F/‖A‖_F."""
    u, s, vh = (t.double() for t in factors)
    residual = torch.linalg.matrix_norm(x.double() @ vh.mT - u * s[:, None, :])
    return float((residual / torch.linalg.matrix_norm(x.double())).amax())


def torch_svd(x: torch.Tensor) -> Any:
    """What one writes with torch; the top is cut from the whole."""
    return torch.linalg.svd(x, full_matrices=False)


def gram_eigvalsh(x: torch.Tensor) -> torch.Tensor:
    """What one writes for many small matrices: eigenvalues of float64 Gram matrices."""
    rows = x.double() if x.shape[1] <= x.shape[2] else x.double().mT
    return torch.linalg.eigvalsh(rows @ rows.mT).clamp(min=0).sqrt().flip(-1)


def value_peers() -> dict[str, Callable[[torch.Tensor], Any]]:
    """Torch's default; on a GPU also each of its drivers, and its batched eigenvalues."""
    peers: dict[str, Callable[[torch.Tensor], Any]] = {"torch.linalg.svdvals": torch.linalg.svdvals}
    if DEVICE != "cpu":
        for driver in ("gesvdj", "gesvda"):
            peers[f"torch.linalg.svdvals {driver}"] = partial(torch.linalg.svdvals, driver=driver)
        peers["float64 Gram + torch eigvalsh"] = gram_eigvalsh
    return peers


def values_case(shape: tuple[int, int, int], dtype: torch.dtype, goal: float) -> Case:
    """Values alone."""
    name = str(dtype).removeprefix("torch.")
    return Case(
        op="batched_svd",
        shape=f"values {'x'.join(map(str, shape))} {name}",
        make=partial(make, shape, dtype),
        ours=aniso.svdvals,
        peers=value_peers(),
        error=value_error,
        tolerance=6e-8 if dtype == torch.float32 else 8e-15,
        goals={"torch.linalg.svdvals": goal},
        rounds=3,
    )


def vectors_case(shape: tuple[int, int, int], k: int | None, goal: float) -> Case:
    """Values and vectors, of all or of the k largest values, float32."""
    return Case(
        op="batched_svd",
        shape=f"{'vectors' if k is None else f'top {k}'} {'x'.join(map(str, shape))} float32",
        make=partial(make, shape, torch.float32),
        ours=partial(aniso.svd, k=k),
        peers={"torch.linalg.svd": torch_svd},
        error=factor_error,
        tolerance=1e-6,
        goals={"torch.linalg.svd": goal},
        rounds=3,
    )


test_batched_svd = side_by_side(
    *(values_case(shape, torch.float32, 10.0) for shape in _SHAPES),
    *(vectors_case(shape, None, 6.0) for shape in _SHAPES),
    *(vectors_case(shape, _TOP, 12.0) for shape in _SHAPES),
    *(values_case(shape, torch.float64, 1.0) for shape in _SHAPES),
)
