"""How the energy of the rows is spread: functions of singular values and eigenvalues.

σ are the singular values of X [N, d], uncentred, from its Gram matrix; λ the eigenvalues of the
centred covariance C. Both descending. Every function gives NaN where its formula has no value.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from aniso.metrics.eigenvalues import descending_eigenvalues

if TYPE_CHECKING:
    from torch import Tensor

_EPS = torch.finfo(torch.float64).eps


def singular_values(raw_gram: Tensor, rows: int) -> Tensor:
    """The min(N, d) singular values of X as square roots of the eigenvalues of Σxxᵀ."""
    eigenvalues = descending_eigenvalues(raw_gram, rows)
    return eigenvalues[: min(rows, len(eigenvalues))].sqrt()


def resolution_floor(sigma: Tensor, dim: int, noise: float = 0.0) -> float:
    """Below √(d ε σ₁² + 2 σ₁ ‖Δ‖) a singular value taken from a Gram matrix is rounding.

    ε of float64; noise = ‖Δ‖_F², the rounding of the rows themselves (see `ops.gram_into`).
    """
    if not len(sigma):
        return math.nan
    largest = float(sigma[0])
    return math.sqrt(largest * (dim * _EPS * largest + 2 * math.sqrt(noise)))


def covariance_eigenvalues(raw_gram: Tensor, total: Tensor, rows: int) -> Tensor:
    """λ of C = Σxxᵀ/N − x̄x̄ᵀ; empty when C is nothing but the rounding of the second moment."""
    if rows < 2:
        return raw_gram.new_empty(0)
    mean = total / rows
    covariance = raw_gram / rows - torch.outer(mean, mean)
    if float(covariance.trace()) <= len(raw_gram) * _EPS * float(raw_gram.trace()) / rows:
        return raw_gram.new_empty(0)
    return descending_eigenvalues(covariance, rows - 1)


def entropy(weights: Tensor) -> float:
    """H(p) = −Σ p log p, p = weights/Σweights, in nats."""
    total = float(weights.sum())
    if not total > 0:
        return math.nan
    return float(torch.special.entr(weights / total).sum())


def explained_variance(sigma: Tensor, k: int) -> float:
    """Σ_(i≤k) σ²/Σσ² (Yan et al. 2022, EV_k)."""
    energy = sigma**2
    return _ratio(float(energy[:k].sum()), float(energy.sum()))


def rankme(sigma: Tensor) -> float:
    """Exp H(σ/Σσ) (Garrido et al. 2022)."""
    return math.exp(entropy(sigma))


def singular_entropy_kl(sigma: Tensor, dim: int) -> float:
    """Log d − H(σ/Σσ) (Godey et al. 2024b)."""
    return math.log(dim) - entropy(sigma)


def stable_rank(sigma: Tensor) -> float:
    """Σσ²/σ₁²."""
    return _ratio(float((sigma**2).sum()), float(sigma[0]) ** 2) if len(sigma) else math.nan


def sv_skewness(sigma: Tensor) -> float:
    """Biased skewness g1 = m₃/m₂^(3/2) of σ (Yan et al. 2022)."""
    if len(sigma) < 2:
        return math.nan
    deviation = sigma - sigma.mean()
    return _ratio(float((deviation**3).mean()), float((deviation**2).mean()) ** 1.5)


def sv_median_ratio(sigma: Tensor) -> float:
    """Median σ/σ₁ (Yan et al. 2022)."""
    if not len(sigma):
        return math.nan
    middle = (sigma[(len(sigma) - 1) // 2] + sigma[len(sigma) // 2]) / 2
    return _ratio(float(middle), float(sigma[0]))


def alpha_req(lam: Tensor) -> float:
    """α of λ_j ∝ j^−α by weighted least squares, j = 10..100, weights 1/j (Agrawal et al. 2022).

    α is minus the slope of log λ_j on log j: positive for a decaying spectrum. Vanishing λ are
    left out; NaN below three points.
    """
    lam = lam[:100]
    lam = lam[lam > 0][9:]
    if len(lam) < 3:
        return math.nan
    j = torch.arange(10, 10 + len(lam), dtype=lam.dtype, device=lam.device)
    weights = 1 / j / (1 / j).sum()
    x, y = j.log(), lam.log()
    x, y = x - weights @ x, y - weights @ y
    return -float((weights * x) @ y / ((weights * x) @ x))


def participation_ratio(lam: Tensor) -> float:
    """tr(C)²/‖C‖_F²: between 1 (one direction) and d (isotropic)."""
    return _ratio(float(lam.sum()) ** 2, float((lam**2).sum()))


def isoscore(lam: Tensor, dim: int) -> float:
    """(participation_ratio − 1)/(d − 1), in [0, 1] (Rudman et al. 2022)."""
    return _ratio(participation_ratio(lam) - 1, dim - 1)


def spectral_anisotropy(lam: Tensor) -> float:
    """λ₁/tr C (Razzhigaev et al. 2024)."""
    return _ratio(float(lam[0]), float(lam.sum())) if len(lam) else math.nan


def effective_rank(lam: Tensor) -> float:
    """Exp H(λ/Σλ) (Roy & Vetterli 2007)."""
    return math.exp(entropy(lam))


def von_neumann_entropy(unit_gram: Tensor, directions: int) -> float:
    """−tr(ρ log ρ) with ρ = Ĝ/N, in nats."""
    if not directions:
        return math.nan
    # Small eigenvalues add next to nothing, whatever their digits.
    density = unit_gram / directions
    return entropy(descending_eigenvalues(density, directions, refine=False))


def renyi2_entropy(unit_gram: Tensor, directions: int) -> float:
    """−log ‖Ĝ/N‖_F², in nats."""
    return -math.log(float(((unit_gram / directions) ** 2).sum())) if directions else math.nan


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else math.nan
