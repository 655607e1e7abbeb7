"""Unbiased HSIC of the linear kernels of paired rows, from sums alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# Below this share of the terms it is a difference of, a float64 sum is nothing but rounding.
_ROUNDING = 64 * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class HsicSums:
    """Additive sums over pairs of rows (a_i, b_i), each source taken about an origin of its own.

    HSIC does not depend on the origins, but its accuracy does: sums about one near the mean do not
    cancel. Dtype float64.

    Attributes:
        scalars: [4]: N, Σ‖a‖², Σ‖b‖², Σ‖a‖²‖b‖².
        sum_a: [da]: Σa.
        sum_b: [db]: Σb.
        weighted_a: [da]: Σ‖b‖²a.
        weighted_b: [db]: Σ‖a‖²b.
        cross: [da, db]: Σabᵀ.
    """

    scalars: Tensor
    sum_a: Tensor
    sum_b: Tensor
    weighted_a: Tensor
    weighted_b: Tensor
    cross: Tensor

    @classmethod
    def zeros(cls, dim_a: int, dim_b: int, device: torch.device | str = "cpu") -> HsicSums:
        """The sums of no rows."""
        double = partial(torch.zeros, dtype=torch.float64, device=device)
        # The matrix first: where there is no room for it, nothing else is touched.
        cross = double(dim_a, dim_b)
        return cls(double(4), double(dim_a), double(dim_b), double(dim_a), double(dim_b), cross)

    def map(self, function: Callable[[Tensor], Tensor]) -> HsicSums:
        """The same sums with `function` applied to every tensor."""
        return HsicSums(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def merge(self, other: HsicSums) -> HsicSums:
        """The sums of both row sets about their common origins; neither operand changes."""
        both = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return HsicSums(**both)

    def moved(self, t: Tensor, u: Tensor) -> HsicSums:
        """The sums of the rows a + t and b + u, every product expanded."""
        n, aa, bb, aabb = self.scalars.unbind()
        tt, uu = t @ t, u @ u
        ta, ub = t @ self.sum_a, u @ self.sum_b
        cross_u, t_cross = self.cross @ u, t @ self.cross
        moved_aa, moved_bb = aa + 2 * ta + n * tt, bb + 2 * ub + n * uu
        quartic = aabb + 2 * (u @ self.weighted_b) + 2 * (t @ self.weighted_a) + 4 * (t @ cross_u)
        quartic += uu * (aa + 2 * ta) + tt * (bb + 2 * ub) + n * tt * uu
        return HsicSums(
            scalars=torch.stack([n, moved_aa, moved_bb, quartic]),
            sum_a=self.sum_a + n * t,
            sum_b=self.sum_b + n * u,
            weighted_a=self.weighted_a + 2 * cross_u + uu * self.sum_a + moved_bb * t,
            weighted_b=self.weighted_b + 2 * t_cross + tt * self.sum_b + moved_aa * u,
            cross=self.cross
            + torch.outer(t, self.sum_b)
            + torch.outer(self.sum_a, u)
            + n * torch.outer(t, u),
        )


def hsic(sums: HsicSums) -> tuple[float, float]:
    """HSIC_1 of K = aaᵀ and L = bbᵀ, and the magnitude of the terms it is a difference of.

    With K̃, L̃ of zeroed diagonal, HSIC_1 = [tr K̃L̃ + 1ᵀK̃1 1ᵀL̃1/((N−1)(N−2)) − 2/(N−2) 1ᵀK̃L̃1]/
    (N(N−3)). It does not change when rows are translated, and about the means 1ᵀK̃1 = −Σ‖a‖² and
    1ᵀK̃L̃1 = q = Σ‖a‖²‖b‖², so that

        HSIC_1 = [‖Σabᵀ‖_F² + Σ‖a‖² Σ‖b‖²/((N−1)(N−2)) − N/(N−2) q]/(N(N−3)).

    NaN below four rows; zero when the rows of a source do not differ.

    Reference: Song et al., "Feature Selection via Dependence Maximization", JMLR 2012.
    """
    n = float(sums.scalars[0])
    if n < 4:
        return math.nan, math.nan
    centred = sums.moved(-sums.sum_a / n, -sums.sum_b / n)
    spread = centred.scalars[1:3]
    if bool((spread <= _ROUNDING * sums.scalars[1:3]).any()):
        return 0.0, 0.0
    signal = float((centred.cross**2).sum())
    chance = float(spread[0] * spread[1]) / ((n - 1) * (n - 2))
    own = float(centred.scalars[3]) * n / (n - 2)
    pairs = n * (n - 3)
    return (signal + chance - own) / pairs, (signal + chance + own) / pairs


def debiased_cka(xx: HsicSums, xy: HsicSums, yy: HsicSums) -> float:
    """HSIC_1(K, L)/√(HSIC_1(K, K) HSIC_1(L, L)), K = xxᵀ, L = yyᵀ: in [−1, 1], 0 by chance.

    NaN below four rows, and where one of the roots is nothing but rounding.

    Args:
        xx: Sums of x with itself.
        xy: Sums of x with y.
        yy: Sums of y with itself.

    Reference: Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019;
    Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?", 2021 (debiased).
    """
    (own_x, size_x), (own_y, size_y) = hsic(xx), hsic(yy)
    if not (own_x > _ROUNDING * size_x and own_y > _ROUNDING * size_y):
        return math.nan
    # Two roots: the product of the two may leave the range of float64.
    return max(-1.0, min(1.0, hsic(xy)[0] / math.sqrt(own_x) / math.sqrt(own_y)))
