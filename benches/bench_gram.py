"""gram against one torch matrix product XᵀX in the dtype of the rows, per Gram matrix."""

from __future__ import annotations

from functools import partial

import torch
from registry import Case, side_by_side

from aniso import reference
from aniso.moments import Grams
from aniso.ops import gram_into

_ROWS, _DIM = 100_000, 768


def make(dtype: torch.dtype, device: str) -> torch.Tensor:
    """Random rows with a common offset."""
    torch.manual_seed(0)
    return (torch.randn(_ROWS, _DIM) + 0.3).to(device, dtype)


def both(x: torch.Tensor) -> Grams:
    """G and Ĝ of the rows about the origin."""
    sums = Grams.zeros(x.shape[1], x.device)
    gram_into(x, None, *sums.tensors())
    return sums


def two_products(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As many matrix products as there are Grams, without even the directions."""
    return x.T @ x, x.T @ x


def error(sums: Grams, x: torch.Tensor) -> float:
    """The larger relative error in Frobenius norm of G and Ĝ, against float64."""
    worst = 0.0
    for found, normalize in ((sums.raw, False), (sums.unit, True)):
        exact = reference.gram(x.double(), normalize=normalize)
        worst = max(worst, float(torch.linalg.norm(found - exact) / torch.linalg.norm(exact)))
    return worst


def case(dtype: torch.dtype, goal: float, tolerance: float) -> Case:
    """The case of one dtype, with the goals of the project."""
    name = str(dtype).removeprefix("torch.")
    return Case(
        op="gram",
        shape=f"G and Ĝ, {_ROWS}x{_DIM} {name}",
        make=partial(make, dtype),
        ours=both,
        peers={f"torch {name} XᵀX, twice": two_products},
        error=error,
        tolerance=tolerance,
        goals={f"torch {name} XᵀX, twice": goal},
    )


test_gram = side_by_side(case(torch.float32, 1.7, 1e-9), case(torch.bfloat16, 1.8, 1e-7))
