"""The top of a long matrix, by function and by estimator, against what a user would call."""

from __future__ import annotations

import torch
from registry import DEVICE, Case, side_by_side
from sklearn.decomposition import IncrementalPCA, TruncatedSVD

import aniso
from aniso.integrations.sklearn import StreamingTruncatedSVD

_ROWS, _DIM, _K = 200_000, 768, 32
_BLOCK = 8192


def make(device: str) -> torch.Tensor:
    """Rows whose singular values decay from 1 to 1e-3, about an offset."""
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(_DIM, _DIM, device=device))[0]
    spread = torch.logspace(0, -3, _DIM, device=device)
    return torch.randn(_ROWS, _DIM, device=device) * spread @ axes + 0.01


def ours(x: torch.Tensor) -> torch.Tensor:
    """Values and both kinds of vectors."""
    return aniso.truncated_svd(x, _K).S


def estimator(x: torch.Tensor) -> torch.Tensor:
    """Values and right vectors, as scikit-learn's estimators keep them."""
    return torch.from_numpy(StreamingTruncatedSVD(_K).fit(x.numpy()).singular_values_)


def sklearn_truncated(x: torch.Tensor) -> torch.Tensor:
    """scikit-learn's randomised TruncatedSVD."""
    return torch.from_numpy(TruncatedSVD(_K, random_state=0).fit(x.numpy()).singular_values_)


def sklearn_incremental(x: torch.Tensor) -> torch.Tensor:
    """scikit-learn's IncrementalPCA."""
    return torch.from_numpy(IncrementalPCA(_K).fit(x.numpy()).singular_values_)


def chunked_gram(x: torch.Tensor) -> torch.Tensor:
    """The float64 Gram matrix in blocks and its eigenvectors: exact, as one writes it in torch."""
    gram = torch.zeros(_DIM, _DIM, dtype=torch.float64, device=x.device)
    for block in x.split(_BLOCK):
        wide = block.double()
        gram.addmm_(wide.T, wide)
    return torch.linalg.eigh(gram)[0].flip(0)[:_K].sqrt()


def svd_lowrank(x: torch.Tensor) -> torch.Tensor:
    """Torch's randomised factorisation."""
    return torch.svd_lowrank(x, q=_K)[1]


def error(found: torch.Tensor, x: torch.Tensor) -> float:
    """Largest relative error of a value against the float64 Gram matrix."""
    exact = chunked_gram(x)
    return float(((found.double() - exact).abs() / exact).max())


_GRAM = {"torch chunked float64 Gram + eigh": chunked_gram}
_SKLEARN = {
    "sklearn TruncatedSVD": sklearn_truncated,
    "sklearn IncrementalPCA": sklearn_incremental,
}
_GOALS = {
    "sklearn TruncatedSVD": 4.0,
    "sklearn IncrementalPCA": 25.0,
    "torch chunked float64 Gram + eigh": 1.5,
}
_SHAPE = f"top-{_K} of {_ROWS}x{_DIM} float32"

_function = Case(
    op="truncated_svd",
    shape=f"{_SHAPE}, with left vectors",
    make=make,
    ours=ours,
    peers=_GRAM | {"torch svd_lowrank": svd_lowrank},
    error=error,
    tolerance=1e-6,
    rounds=3,
)
_estimator = Case(
    op="truncated_svd",
    shape=f"{_SHAPE}, fit",
    make=make,
    ours=estimator,
    peers=_GRAM | _SKLEARN,
    error=error,
    tolerance=1e-9,
    goals=_GOALS,
    rounds=3,
)
# scikit-learn takes arrays of NumPy.
test_truncated_svd = side_by_side(_function, *([_estimator] if DEVICE == "cpu" else []))
