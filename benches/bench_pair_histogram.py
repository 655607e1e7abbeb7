"""pair_histogram against scikit-learn's chunked distances and torch's chunked products."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from registry import Case, side_by_side
from sklearn.metrics import pairwise_distances_chunked

import aniso
from aniso import reference

_ROWS, _DIM, _BINS = 20_000, 768, 2048
_CHUNK = 2000
# A cosine of a kernel is this close to float64: pairs that close to an edge may change bins.
_ERROR = 2e-6


def make(dtype: torch.dtype, narrow: bool, device: str) -> torch.Tensor:
    """Random rows with a common offset; narrow: all cosines in [0.999, 1]."""
    torch.manual_seed(0)
    spread = 0.02 if narrow else 1.0
    offset = torch.randn(1, _DIM) if narrow else torch.full((1, _DIM), 0.3)
    return (offset + spread * torch.randn(_ROWS, _DIM)).to(device, dtype)


def sklearn_histogram(x: torch.Tensor) -> np.ndarray:
    """What one writes with scikit-learn and NumPy; rows of half precision in float32."""
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


def misplaced(result: aniso.CosineHistogram, x: torch.Tensor) -> float:
    """Share of pairs that lie in a wrong bin, those within 2e-6 of an edge aside."""
    units = reference.directions(x.double())
    edges = torch.as_tensor(result.edges)
    least, most = torch.zeros(2, _BINS + 1, dtype=torch.int64)
    for first in range(0, _ROWS, _CHUNK):
        cosines = (units[first : first + _CHUNK] @ units.T).clamp(-1, 1)
        cosines = cosines[torch.ones_like(cosines, dtype=torch.bool).tril(first - 1)]
        ordered = cosines.sort().values
        least += torch.searchsorted(ordered, edges - _ERROR)
        most += torch.searchsorted(ordered, edges + _ERROR)
    below = torch.cat([result.counts.new_zeros(1), result.counts.cumsum(0)])
    wrong = (least - below).clamp(min=0) + (below - most).clamp(min=0)
    return float(wrong[:_BINS].max()) / result.pairs


def case(dtype: torch.dtype, narrow: bool, goals: dict[str, float]) -> Case:
    """The case of one dtype and distribution, with the goals of the project."""
    name = str(dtype).removeprefix("torch.")
    return Case(
        op="pair_histogram",
        shape=f"{_ROWS}x{_DIM} {name}, {_BINS} bins, {'narrow' if narrow else 'wide'}",
        make=partial(make, dtype, narrow),
        ours=partial(aniso.cosine_histogram, bins=_BINS),
        peers={"scikit-learn": sklearn_histogram, "torch chunked": torch_histogram},
        error=misplaced,
        tolerance=0.0,
        goals=goals,
        rounds=3,
    )


test_pair_histogram = side_by_side(
    case(torch.float32, False, {"scikit-learn": 30.0, "torch chunked": 9.0}),
    case(torch.float32, True, {"scikit-learn": 30.0, "torch chunked": 9.0}),
    case(torch.bfloat16, False, {"scikit-learn": 45.0}),
    case(torch.bfloat16, True, {"scikit-learn": 45.0}),
)
