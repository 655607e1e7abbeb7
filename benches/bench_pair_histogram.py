"""pair_histogram against scikit-learn's chunked distances and torch's chunked products."""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import torch
from registry import DEVICE, Case, side_by_side

import aniso
from aniso import reference

_ROWS, _DIM = (20_000, 768) if DEVICE == "cpu" else (131_072, 4096)
_BINS = 2048
_CHUNK = 2000
# A cosine of a kernel is this close to float64: pairs that close to an edge may change bins.
_ERROR = 2e-6


def make(dtype: torch.dtype, narrow: bool, device: str) -> torch.Tensor:
    """Random rows with a common offset; narrow: all cosines in [0.999, 1]."""
    torch.manual_seed(0)
    spread = 0.02 if narrow else 1.0
    offset = torch.randn(1, _DIM) if narrow else torch.full((1, _DIM), 0.3)
    noise = torch.randn(_ROWS, _DIM, device=device)
    return (offset.to(device) + spread * noise).to(dtype)


def sklearn_histogram(x: torch.Tensor) -> np.ndarray:
    """What one writes with scikit-learn and NumPy; rows of half precision in float32."""
    from sklearn.metrics import pairwise_distances_chunked

    rows, counts = x.float().cpu().numpy(), np.zeros(_BINS, dtype=np.int64)
    for chunk in pairwise_distances_chunked(rows, metric="cosine"):
        counts += np.histogram(1 - chunk, bins=_BINS, range=(-1, 1))[0]
    return counts


def torch_histogram(x: torch.Tensor) -> torch.Tensor:
    """What one writes with torch: chunked products of directions, then histc."""
    units = torch.nn.functional.normalize(x.float(), dim=1)
    counts = torch.zeros(_BINS, device=x.device)
    for chunk in units.split(_CHUNK):
        counts += torch.histc(chunk @ units.T, _BINS, -1, 1)
    return counts


def torch_products(x: torch.Tensor) -> torch.Tensor:
    """The same on a GPU, with products in the dtype of the rows."""
    units = torch.nn.functional.normalize(x.float(), dim=1).to(x.dtype)
    counts = torch.zeros(_BINS, device=x.device)
    for chunk in units.split(_CHUNK):
        counts += torch.histc((chunk @ units.T).float(), _BINS, -1, 1)
    return counts


def misplaced(result: aniso.CosineHistogram, x: torch.Tensor) -> float:
    """Share of pairs that lie in a wrong bin, those within 2e-6 of an edge aside."""
    units = reference.directions(x.double())
    low, high = torch.zeros(2, _BINS, dtype=torch.float64, device=x.device)
    for first in range(0, _ROWS, _CHUNK):
        cosines = units[first : first + _CHUNK] @ units[: first + _CHUNK].T
        cosines = cosines[torch.ones_like(cosines, dtype=torch.bool).tril(first - 1)]
        low += torch.histc((cosines - _ERROR).clamp(-1, 1), _BINS, -1, 1)
        high += torch.histc((cosines + _ERROR).clamp(-1, 1), _BINS, -1, 1)
    below = torch.as_tensor(result.counts).cumsum(0)
    wrong = (high.cumsum(0) - below).clamp(min=0) + (below - low.cumsum(0)).clamp(min=0)
    return float(wrong[:-1].max()) / result.pairs


@cache
def wide_rows(dtype: torch.dtype, device: str) -> torch.Tensor:
    """The rows of the wide case."""
    return make(dtype, False, device)


def wide(x: torch.Tensor) -> object:
    """Our own histogram of wide rows, beside which narrow ones are measured."""
    return aniso.cosine_histogram(wide_rows(x.dtype, str(x.device)), bins=_BINS)


def case(dtype: torch.dtype, narrow: bool, goals: dict[str, float]) -> Case:
    """The case of one dtype and distribution, with the goals of the project."""
    name = str(dtype).removeprefix("torch.")
    on_cpu = {"scikit-learn": sklearn_histogram, "torch chunked": torch_histogram}
    peers = {"wide": wide} if narrow else on_cpu
    return Case(
        op="pair_histogram",
        shape=f"{_ROWS}x{_DIM} {name}, {_BINS} bins, {'narrow' if narrow else 'wide'}",
        make=partial(make, dtype, narrow),
        ours=partial(aniso.cosine_histogram, bins=_BINS),
        peers=peers if DEVICE == "cpu" else {"torch chunked": torch_products},
        error=misplaced,
        tolerance=0.0,
        goals=goals,
        rounds=7 if narrow else 5,
    )


# scikit-learn takes ten seconds a call. Narrow rows may cost 1.1 times what wide ones do.
_CPU = (
    case(torch.float32, False, {"scikit-learn": 30.0, "torch chunked": 9.0}),
    case(torch.float32, True, {"wide": 1 / 1.1}),
    case(torch.bfloat16, False, {"scikit-learn": 45.0}),
    case(torch.bfloat16, True, {"wide": 1 / 1.1}),
)
_GPU = tuple(
    case(torch.bfloat16, narrow, {"torch chunked": 5.0, "milliseconds": 110.0})
    for narrow in (False, True)
)

test_pair_histogram = side_by_side(*(_CPU if DEVICE == "cpu" else _GPU))
