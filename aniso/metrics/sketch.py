"""Leading axes of rows too wide for a Gram matrix: a sketch of it, and how far off it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import torch

from aniso.errors import InputError
from aniso.metrics.principal_axes import PrincipalAxes, signed
from aniso.metrics.spectrum import resolution_floor

if TYPE_CHECKING:
    from torch import Tensor

# Gaussian vectors that the error is estimated with.
PROBES = 10
_UNIT = 2.0**-53
# Rounding of sums of squares and of the products of the sketch, relative to the trace: far above
# what was seen, far below what a sketch leaves out.
_ROUNDING = 2.0**-38


@dataclass(frozen=True)
class SketchedAxes(PrincipalAxes):
    """`PrincipalAxes` from a sketch Ĝ of the Gram matrix G, with what is known of their errors.

    Attributes:
        lower: [k]. No singular value lies below its bound ...
        upper: [k]. ... or above this one: λ̂_i ≤ σ_i² ≤ λ̂_i + tr(G − Ĝ), as Ĝ ≼ G and tr G is known.
        missing: tr(G − Ĝ)/tr G: the share of the energy that the sketch has not seen.
        error_estimate: ‖G − Ĝ‖_F/‖Ĝ‖_F, its square an unbiased estimate from 10 Gaussian probes.
    """

    lower: Tensor
    upper: Tensor
    missing: float
    error_estimate: float


@dataclass(frozen=True)
class SketchSums:
    """Additive sums over rows y = x − p about a pilot p; float64, counts int64.

    Attributes:
        test: Ω and the probes beside it, [d, s + 10]; the same in all sums that merge.
        pilot: p, [d].
        product: Σ y (yᵀ Ω), [d, s + 10].
        total: Σy, [d].
        square: Σ‖y‖², [1].
        counts: [3]: rows kept; left out as non-finite, as masked.
    """

    test: Tensor
    pilot: Tensor
    product: Tensor
    total: Tensor
    square: Tensor
    counts: Tensor

    @classmethod
    def zeros(cls, test: Tensor) -> SketchSums:
        """Of no rows."""
        row = test.new_zeros(len(test))
        counts = torch.zeros(3, dtype=torch.int64, device=test.device)
        zeros = torch.zeros_like(test)
        return cls(test, row, zeros, row.clone(), test.new_zeros(1), counts)

    @property
    def rows(self) -> int:
        """Rows kept."""
        return int(self.counts[0])

    def tensors(self) -> dict[str, Tensor]:
        """The arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def about(self, pilot: Tensor) -> SketchSums:
        """The same rows about another pilot: y + h, h = p − pilot."""
        step = self.pilot - pilot
        seen = self.test.T @ step
        product = self.product + torch.outer(self.total, seen)
        product += torch.outer(step, self.test.T @ self.total + self.rows * seen)
        square = self.square + 2 * (self.total @ step) + self.rows * (step @ step)
        total = self.total + self.rows * step
        return replace(self, pilot=pilot, product=product, total=total, square=square)

    def merge(self, other: SketchSums) -> SketchSums:
        """Of both row sets, about one pilot; neither operand changes."""
        # The pilot of sums without rows is none.
        pilot = self.pilot if self.rows else other.pilot
        mine, theirs = self.about(pilot).tensors(), other.about(pilot).tensors()
        added = {name: mine[name] + theirs[name] for name in mine if name not in ("test", "pilot")}
        return SketchSums(test=self.test, pilot=pilot, **added)


def random_directions(dim: int, size: int, seed: int) -> Tensor:
    """Orthonormal Ω [d, s] and Gaussian probes [d, 10], side by side."""
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(dim, size + PROBES, generator=generator, dtype=torch.float64)
    return torch.cat([torch.linalg.qr(gaussian[:, :size])[0], gaussian[:, size:]], dim=1)


def sketched_axes(sums: SketchSums, k: int, *, center: bool) -> SketchedAxes:
    """The k leading axes by the Nyström approximation Ĝ = GΩ (ΩᵀGΩ)⁺ (GΩ)ᵀ.

    Args:
        sums: Of the rows.
        k: How many; those far below s are the accurate ones.
        center: Subtract the mean row.

    Raises:
        InputError: k not in 0..s, or no rows.

    Time O(d s²).
    Reference: Tropp, Yurtsever, Udell & Cevher, "Fixed-Rank Approximation of a Positive-
    Semidefinite Matrix from Streaming Data", NIPS 2017; for the estimate their "Streaming Low-Rank
    Matrix Approximation with an Application to Scientific Simulation", 2019.
    """
    dim, size = len(sums.test), sums.test.shape[1] - PROBES
    if not 0 <= k <= size:
        raise InputError(f"k is {k}; a sketch of size {size} has {size} axes")
    if not sums.rows:
        raise InputError("there are no rows yet; update with rows before asking for their axes")
    mean = sums.pilot + sums.total / sums.rows
    centred = sums.about(mean)
    source = centred if center else centred.about(torch.zeros_like(mean))
    trace = max(0.0, float(source.square))
    vectors, shifted, shift = _nystroem(source.product[:, :size], source.test[:, :size])
    values = (shifted - shift).clamp(min=0.0)
    missing = max(0.0, trace + dim * shift - float(shifted.sum())) + _ROUNDING * trace
    probes, seen = source.test[:, size:], source.product[:, size:]
    off = seen - vectors @ (values[:, None] * (vectors.T @ probes))
    size_of_sketch = float(torch.linalg.vector_norm(values))
    estimate = float(torch.linalg.matrix_norm(off)) / math.sqrt(PROBES)
    top, sigma = values[:k], values[:k].sqrt()
    return SketchedAxes(
        singular_values=sigma,
        components=signed(vectors[:, :k].T),
        mean=mean,
        rows=sums.rows,
        centered=center,
        scatter=max(0.0, float(centred.square)),
        resolution_floor=resolution_floor(sigma, dim),
        lower=(top - _ROUNDING * trace).clamp(min=0.0).sqrt(),
        upper=(top + missing).sqrt(),
        missing=missing / trace if trace else 0.0,
        error_estimate=estimate / size_of_sketch if size_of_sketch else 0.0,
    )


def _nystroem(product: Tensor, test: Tensor) -> tuple[Tensor, Tensor, float]:
    """Eigenvectors [d, s] and values [s] of the approximation of G + νI, and ν.

    The shift ν, a rounding of G, keeps ΩᵀGΩ invertible.
    """
    shift = math.sqrt(len(product)) * _UNIT * float(torch.linalg.matrix_norm(product))
    if shift == 0.0:
        return test, product.new_zeros(product.shape[1]), 0.0
    shifted = product + shift * test
    inner = test.T @ shifted
    values, vectors = torch.linalg.eigh((inner + inner.T) / 2)
    # What is not positive, or lost beside the shift, is rounding.
    roots = torch.where(values > shift / 2, values, math.inf).rsqrt()
    axes, sigma, _ = torch.linalg.svd(shifted @ (vectors * roots), full_matrices=False)
    return axes, sigma**2, shift
