"""gram against one torch matrix product XᵀX in the dtype of the rows, per Gram matrix."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from registry import DEVICE, Case, side_by_side

from aniso import reference
from aniso.moments import Grams
from aniso.ops import gram_into

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK = 50_000
# On a GPU: the shapes of the goals, and rows of 32 bits that take a second in float64.
_ROWS, _DIM = (100_000, 768) if DEVICE == "cpu" else (1_000_000, 4096)
_WIDE_ROWS = 250_000


def make(dtype: torch.dtype, rows: int, device: str) -> torch.Tensor:
    """Random rows with a common offset."""
    torch.manual_seed(0)
    x = torch.empty(rows, _DIM, dtype=dtype, device=device)
    for chunk in x.split(_CHUNK):
        chunk.copy_(torch.randn(chunk.shape, device=device) + 0.3)
    return x


def both(x: torch.Tensor) -> Grams:
    """G and Ĝ of the rows about the origin."""
    sums = Grams.zeros(x.shape[1], x.device)
    gram_into(x, None, *sums.tensors())
    return sums


def raw(x: torch.Tensor) -> Grams:
    """G alone."""
    sums = Grams.zeros(x.shape[1], x.device)
    gram_into(x, None, sums.pilot, sums.raw, None, sums.totals, sums.noise)
    return sums


def single_grade(x: torch.Tensor) -> Grams:
    """G by the Triton kernel of three float16 products, which the op leaves to 16-bit rows."""
    from aniso.triton_kernels.gram import gram

    sums = Grams.zeros(x.shape[1], x.device)
    gram(x, None, sums.raw)
    return sums


def product(x: torch.Tensor) -> torch.Tensor:
    """One matrix product."""
    return x.T @ x


def double_product(x: torch.Tensor) -> torch.Tensor:
    """One matrix product in float64, a chunk of rows at a time."""
    total = x.new_zeros((x.shape[1], x.shape[1]), dtype=torch.float64)
    for chunk in x.split(_CHUNK):
        wide = chunk.double()
        total.addmm_(wide.T, wide)
    return total


def two_products(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As many matrix products as there are Grams, without even the directions."""
    return product(x), product(x)


def error(sums: Grams, x: torch.Tensor) -> float:
    """The larger relative error in Frobenius norm of those of G and Ĝ that were asked for."""
    worst = 0.0
    for found, normalize in ((sums.raw, False), (sums.unit, True)):
        if bool(found.any()):
            exact = torch.zeros_like(found)
            for chunk in x.split(_CHUNK):
                exact += reference.gram(chunk.double(), normalize=normalize)
            worst = max(worst, float(torch.linalg.norm(found - exact) / torch.linalg.norm(exact)))
    return worst


def case(
    dtype: torch.dtype,
    ours: Callable[[torch.Tensor], Grams],
    peer: Callable[[torch.Tensor], object],
    goals: tuple[float, float | None],
    tolerance: float,
) -> Case:
    """One case; goals are the ratio to the peer, and milliseconds on a GPU."""
    name = str(dtype).removeprefix("torch.")
    rows = _ROWS if DEVICE == "cpu" or dtype == torch.bfloat16 else _WIDE_ROWS
    peer_name = f"torch {name} {peer.__name__}"
    ratio, milliseconds = goals
    return Case(
        op="gram",
        shape=f"{ours.__name__}, {rows}x{_DIM} {name}",
        make=partial(make, dtype, rows),
        ours=ours,
        peers={peer_name: peer},
        error=error,
        tolerance=tolerance,
        goals={peer_name: ratio} | ({} if milliseconds is None else {"milliseconds": milliseconds}),
    )


_CPU = (
    case(torch.float32, both, two_products, (1.7, None), 1e-9),
    case(torch.bfloat16, both, two_products, (1.8, None), 2e-7),
)
# Milliseconds of 250,000 rows: 8.4 TFLOP of a whole product at 230 and at 110 TFLOP/s.
_GPU = (
    case(torch.bfloat16, raw, product, (2.0, 27.0), 1e-6),
    case(torch.float32, single_grade, product, (4.0, 36.5), 1e-6),
    case(torch.float32, raw, double_product, (1.5, 76.3), 1e-12),
    case(torch.bfloat16, both, two_products, (1.0, None), 1e-6),
)

test_gram = side_by_side(*(_CPU if DEVICE == "cpu" else _GPU))
