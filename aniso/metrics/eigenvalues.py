"""Eigenvalues of second-moment matrices, small ones as trustworthy as large ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from aniso.ops._eigen import descending_eigh

if TYPE_CHECKING:
    from torch import Tensor

# The solver's error is some ε·λ₁. Above this share of λ₁ it changes √λ by less than 1e-9.
_TRUSTED = 1e-7
_SLICES = 3
# Up to d/4 the range of a matrix of low rank is found sooner than its eigenvalues (measured for
# d of 768 and 2048).
_LOW_RANK = 4
_OVERSAMPLING = 8


def descending_eigenvalues(
    matrix: Tensor, rank: int | None = None, *, refine: bool = True
) -> Tensor:
    """Eigenvalues of a positive semidefinite matrix, descending; what rounds below zero is zero.

    The solver is accurate to ε·λ₁, which drowns a small λ and takes half the digits of √λ. Small
    ones are therefore replaced by the Rayleigh quotients qᵀGq/qᵀq of their eigenvectors: these are
    accurate to second order in the error of q, given that Gq is multiplied exactly.

    Args:
        matrix: Symmetric, [d, d], float64. All are NaN when an entry is not finite.
        rank: What its rank r is known not to exceed; the eigenvalues beyond it are zero.
        refine: Whether small ones need digits of their own, which takes six times as long beyond
            r = d/4.

    Time O(d³), O(d² r) where r is at most d/4.
    """
    if not torch.isfinite(matrix).all():
        return torch.full_like(matrix[0], math.nan)
    eigenvalues = torch.zeros_like(matrix[0])
    rank = len(matrix) if rank is None else min(rank, len(matrix))
    if _is_low(rank, matrix):
        eigenvalues[:rank], _ = leading_eigenpairs(matrix, rank, rank)
        return eigenvalues
    eigenvalues[:rank] = torch.linalg.eigvalsh(matrix).flip(0)[:rank]
    small = eigenvalues[:rank] < _TRUSTED * eigenvalues[:1]
    if refine and small.any():
        _, vectors = descending_eigh(matrix)
        eigenvalues[:rank][small] = _rayleigh_quotients(matrix, vectors[:, :rank][:, small])
        eigenvalues = eigenvalues.sort(descending=True).values
    return eigenvalues.clamp(min=0.0)


def leading_eigenpairs(matrix: Tensor, k: int, rank: int | None = None) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues, as `descending_eigenvalues` gives them, and eigenvectors [d, k].

    Args:
        matrix: Positive semidefinite, [d, d], float64, finite.
        k: How many, at most d.
        rank: What its rank r is known not to exceed.

    Time O(d³), O(d² r) where r is at most d/4 and k at most r.
    """
    if rank is not None and k <= rank and _is_low(rank, matrix):
        eigenvalues, vectors = _eigenpairs_within_range(matrix, rank)
    else:
        eigenvalues, vectors = descending_eigh(matrix)
    eigenvalues, vectors = eigenvalues[:k].clone(), vectors[:, :k]
    small = eigenvalues < _TRUSTED * eigenvalues[:1]
    if small.any():
        eigenvalues[small] = _rayleigh_quotients(matrix, vectors[:, small])
        eigenvalues, order = eigenvalues.sort(descending=True)
        vectors = vectors[:, order]
    return eigenvalues.clamp(min=0.0), vectors


def _is_low(rank: int, matrix: Tensor) -> bool:
    return _LOW_RANK * rank <= len(matrix)


def _eigenpairs_within_range(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Those of a matrix of low rank: its products with random vectors span its range.

    Multiplied once more, they lose what the rounding of the matrix added (Halko et al. 2011).
    """
    generator = torch.Generator("cpu").manual_seed(0)
    shape = len(matrix), min(rank + _OVERSAMPLING, len(matrix))
    start = torch.randn(shape, generator=generator, dtype=matrix.dtype, device="cpu")
    basis = start.to(matrix.device)
    for _ in range(2):
        basis = torch.linalg.qr(matrix @ basis).Q
    eigenvalues, vectors = descending_eigh(basis.T @ (matrix @ basis))
    return eigenvalues, basis @ vectors


def _rayleigh_quotients(matrix: Tensor, vectors: Tensor) -> Tensor:
    high, low = _exact_product(matrix, vectors)
    return ((vectors * high).sum(0) + (vectors * low).sum(0)) / (vectors**2).sum(0)


def _exact_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """A @ b to twice the precision of float64, as an unevaluated sum of two (Ozaki et al. 2012).

    Both factors are cut into slices of so few bits that a product of slices is exact in float64,
    whatever the order of summation; those products are then added with their rounding errors.
    """
    bits = (53 - math.ceil(math.log2(max(2, a.shape[1])))) // 2
    left, right = _slices(a, bits, dim=1), _slices(b, bits, dim=0)
    high = a.new_zeros(a.shape[0], b.shape[1])
    low = torch.zeros_like(high)
    for i in range(_SLICES):
        for j in range(_SLICES - i):
            term = left[i] @ right[j]
            total = high + term
            carried = total - high
            low += (high - (total - carried)) + (term - carried)
            high = total
    return high, low


def _slices(x: Tensor, bits: int, dim: int) -> list[Tensor]:
    """Parts of x, each with `bits` significant bits relative to the largest entry along `dim`."""
    parts = []
    for _ in range(_SLICES):
        _, exponent = torch.frexp(x.abs().amax(dim=dim, keepdim=True))
        shift = torch.ldexp(torch.full_like(x, 0.75), exponent + (54 - bits))
        part = (x + shift) - shift
        parts.append(part)
        x = x - part
    return parts
