"""What a subspace tells about the singular values of a large matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

UNIT = 2.0**-53
# Numbers of a block that is brought to another dtype: it stays in the last-level cache.
_BLOCK_ELEMENTS = 1 << 21
# Rounding of a sum of squares that is added up in float64 by blocks, relative.
_ENERGY_ERROR = 2.0**-45
_TRIES = 4
_PARTS = 64


@dataclass(frozen=True)
class ScaledMatrix:
    """A·s with a power of two s that keeps products in range; A [m, n] is not copied."""

    a: Tensor
    scale: float = 1.0

    @classmethod
    def of(cls, a: Tensor) -> ScaledMatrix:
        """With the largest magnitude brought near one; s is NaN where a value is not finite."""
        largest = float(torch.stack(torch.aminmax(a)).abs().amax())
        if largest == 0 or not math.isfinite(largest):
            return cls(a, 1.0 if largest == 0 else math.nan)
        # s times a vector must stay in the range of the products' dtype as well.
        limit = 1000 if a.dtype == torch.float64 else 100
        return cls(a, 2.0 ** max(-limit, min(limit, -math.frexp(largest)[1])))

    @property
    def transposed(self) -> ScaledMatrix:
        """Aᵀ·s."""
        return ScaledMatrix(self.a.T, self.scale)

    def blocks(self) -> list[slice]:
        """Rows of A in blocks."""
        step = max(1, _BLOCK_ELEMENTS // self.a.shape[1])
        return [slice(i, i + step) for i in range(0, len(self.a), step)]

    def times(self, v: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """A s V in float64 [m, k] for V [n, k]; the products are those of `dtype`."""
        factor = (v * self.scale).to(dtype)
        if self.a.dtype == dtype:
            product: Tensor = self.a @ factor
            return product.double()
        out = v.new_empty(len(self.a), v.shape[1])
        for part in self.blocks():
            out[part] = self.a[part].to(dtype) @ factor
        return out

    def energy(self) -> float:
        """‖A s‖_F², to 2⁻⁴⁵ of itself."""
        parts = [(self.a[part].double() * self.scale).square().sum() for part in self.blocks()]
        return float(torch.stack(parts).sum())


@dataclass(frozen=True)
class Triplets:
    """Approximate singular triplets, all float64.

    Attributes:
        left: [m, k].
        values: [k], descending.
        right: [n, k].
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def transposed(self) -> Triplets:
        """Of the transposed matrix."""
        return Triplets(self.right, self.values, self.left)

    @property
    def defect(self) -> float:
        """The larger of ‖UᵀU − I‖_F and ‖VᵀV − I‖_F."""
        return max(_defect(inner_products(q, q)) for q in (self.left, self.right))

    def first(self, k: int) -> Triplets:
        """The k largest."""
        return Triplets(self.left[:, :k], self.values[:k], self.right[:, :k])


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """Aᵀ B of columns [m, ·], added up in 64 parts: no sum of more than m/64 + 128 terms."""
    step = -(-len(a) // _PARTS)
    whole = len(a) // step * step
    left, right = (q[:whole].reshape(-1, step, q.shape[1]) for q in (a, b))
    return (left.mT @ right).sum(dim=0) + a[whole:].T @ b[whole:]


def ritz(image: Tensor, basis: Tensor) -> tuple[Triplets, float]:
    """Triplets from an orthonormal basis Q [n, p] and its image A Q [m, p]: Rayleigh and Ritz.

    Their values never exceed the singular values of A: σ_i(A Q) ≤ σ_i(A). The second result is
    ‖A V − U Θ‖_F, the rounding of all this.
    """
    q = orthonormal(image)
    u, values, zh = torch.linalg.svd(inner_products(q, image))
    found = Triplets(q @ u, values, basis @ zh.T)
    miss = torch.linalg.matrix_norm(image @ zh.T - found.left * values)
    return found, float(miss)


def orthonormal(w: Tensor) -> Tensor:
    """Orthonormal columns [m, k] whose span holds the columns of w [m, k], m ≥ k, float64.

    CholeskyQR of columns of unit length, until they are orthonormal to rounding (mostly twice);
    Householder reflections where columns depend on each other. Time O(m k²).
    """
    q, eye = w, torch.eye(w.shape[1], dtype=w.dtype, device=w.device)
    for _ in range(_TRIES):
        gram = inner_products(q, q)
        if _defect(gram) <= 8 * len(gram) * UNIT:
            return q
        length = gram.diagonal().sqrt()
        if not bool((length > 0).all()):
            break
        factor, info = torch.linalg.cholesky_ex(gram / length / length[:, None])
        if int(info):
            break
        inverse = torch.linalg.solve_triangular(factor.mT, eye, upper=True)
        q = q @ (inverse / length[:, None])
    reflected: Tensor = torch.linalg.qr(w)[0]
    return reflected


def _defect(gram: Tensor) -> float:
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return float(torch.linalg.matrix_norm(gram - eye))


@dataclass(frozen=True)
class Remainder:
    """What is known of A beyond the triplets found, U and V orthonormal; AᵀA in [V, V⊥].

    Attributes:
        energy: ‖A‖_F².
        outside: Bound of ‖A − A QQᵀ‖₂² for the whole subspace Q that the triplets were taken from.
        below: Bound of ‖A − A VVᵀ‖₂².
        coupling: Bound of ‖AᵀA V − V Θ²‖₂.
    """

    energy: float
    outside: float
    below: float
    coupling: float

    @classmethod
    def measured(
        cls, energy: float, values: Tensor, k: int, coupling: float, beyond: float = math.inf
    ) -> Remainder:
        """From all Ritz values of a subspace, of which the k largest are kept.

        ‖A − A QQᵀ‖_F² = ‖A‖_F² − ‖A Q‖_F²; `beyond` bounds the same by other means.
        """
        squares = values**2
        spare = _ENERGY_ERROR * energy
        outside = min(max(energy - float(squares.sum()), 0.0) + spare, beyond)
        rest = max(energy - float(squares[:k].sum()), 0.0) + spare
        below = min(rest, outside + (float(squares[k]) if k < len(values) else 0.0))
        return cls(energy, outside, below, coupling)

    def bounds(self, found: Triplets, inner: int) -> Tensor:
        """Where each singular value lies, [2, k]: between its Ritz value and the least of three.

        σ_i² ≤ θ_i² + outside; ≤ max(θ_i², below) + coupling (Weyl); ≤ θ_i² + coupling²/(θ_i² −
        below) where that is positive. `inner` terms meet in each product A V: their rounding, that
        of the inner products of vectors and what these lack of orthonormal are counted.
        """
        theta = found.values
        top = float(theta[0]) if len(theta) else 0.0
        defect = found.defect
        terms = inner + max(len(found.left), len(found.right)) / _PARTS + 2 * _PARTS
        slack = terms * UNIT * math.sqrt(len(theta) * self.energy) + 2 * defect * top
        coupling = self.coupling + 4 * defect * top**2
        squares, gap = (theta + slack) ** 2, (theta - slack).clamp(min=0) ** 2 - self.below
        above = [squares + self.outside, squares.clamp(min=self.below) + coupling]
        above.append(torch.where(gap > 0, squares + coupling**2 / gap, math.inf))
        upper = torch.stack(above).amin(dim=0).sqrt() * (1 + 4 * UNIT)
        return torch.stack([(theta - slack).clamp(min=0), upper])
