"""row_moments against torch normalize + sum, and against the read bandwidth of this machine."""

from __future__ import annotations

from functools import partial

import torch
from registry import Case, side_by_side

import aniso
from aniso.metrics.cosine import mean_cosine

_ROWS, _DIM = 1_000_000, 768
_CHUNK = 50_000


def make(dtype: torch.dtype, device: str) -> torch.Tensor:
    """Random rows with a common offset, so that the mean cosine is far from zero."""
    torch.manual_seed(0)
    x = torch.empty(_ROWS, _DIM, dtype=dtype, device=device)
    for chunk in x.split(_CHUNK):
        chunk.copy_(torch.randn(chunk.shape) + 0.3)
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


def case(dtype: torch.dtype, torch_goal: float) -> Case:
    """The case of one dtype, with the goals of the project."""
    return Case(
        op="row_moments",
        shape=f"{_ROWS}x{_DIM} {str(dtype).removeprefix('torch.')}",
        make=partial(make, dtype),
        ours=aniso.row_moments,
        peers={"torch normalize + sum": torch_normalize_sum},
        error=error_of_mean_cosine,
        nbytes=_ROWS * _DIM * dtype.itemsize,
        goals={"torch normalize + sum": torch_goal, "limit": 0.85},
    )


test_row_moments = side_by_side(case(torch.float32, 9.0), case(torch.bfloat16, 25.0))
