"""row_moments against torch normalize + sum, and against the read bandwidth of this machine."""

from __future__ import annotations

from functools import partial

import torch
from registry import DEVICE, Case, side_by_side

import aniso
from aniso.metrics.cosine import mean_cosine

_ROWS, _DIM = 1_000_000, 768 if DEVICE == "cpu" else 4096
_CHUNK = 50_000
_PEER = "torch normalize + sum"


def make(dtype: torch.dtype, device: str) -> torch.Tensor:
    """Random rows with a common offset, so that the mean cosine is far from zero."""
    torch.manual_seed(0)
    x = torch.empty(_ROWS, _DIM, dtype=dtype, device=device)
    for chunk in x.split(_CHUNK):
        chunk.copy_(torch.randn(chunk.shape, device=device) + 0.3)
    return x


def torch_normalize_sum(x: torch.Tensor) -> torch.Tensor:
    """What one writes in torch for the mean cosine."""
    return torch.nn.functional.normalize(x, dim=1).sum(dim=0)


def error_of_mean_cosine(moments: aniso.RowMoments, x: torch.Tensor) -> float:
    """Relative error of the mean cosine against float64."""
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for chunk in x.split(_CHUNK):
        total += torch.nn.functional.normalize(chunk.double(), dim=1).sum(dim=0)
    n = len(x)
    exact = (float(total @ total) - n) / (n * (n - 1))
    return abs(mean_cosine(moments) / exact - 1)


def case(dtype: torch.dtype, goals: dict[str, float]) -> Case:
    """The case of one dtype, with the goals of the project."""
    return Case(
        op="row_moments",
        shape=f"{_ROWS}x{_DIM} {str(dtype).removeprefix('torch.')}",
        make=partial(make, dtype),
        ours=aniso.row_moments,
        peers={_PEER: torch_normalize_sum},
        error=error_of_mean_cosine,
        nbytes=_ROWS * _DIM * dtype.itemsize,
        tolerance=1e-9 if dtype == torch.float32 else 1e-8,
        goals=goals,
    )


_CPU = (
    case(torch.float32, {_PEER: 9.0, "limit": 0.85}),
    case(torch.bfloat16, {_PEER: 25.0, "limit": 0.85}),
)
_GPU = (case(torch.bfloat16, {_PEER: 8.0, "milliseconds": 2.1}),)

test_row_moments = side_by_side(*(_CPU if DEVICE == "cpu" else _GPU))
