"""Singular values and right singular vectors of all rows seen, from their second moments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError
from aniso.metrics.eigenvalues import leading_eigenpairs
from aniso.metrics.spectrum import resolution_floor
from aniso.ops._arrays import as_tensor, check_rows, restore_kind
from aniso.ops._subspace import ScaledMatrix

if TYPE_CHECKING:
    from torch import Tensor

    from aniso.moments import Grams


@dataclass(frozen=True)
class PrincipalAxes:
    """The leading singular triplets of rows X [n, d], less their mean when centred; float64.

    Attributes:
        singular_values: σ of X, or of X − x̄, [k], descending.
        components: Right singular vectors, [k, d]; the entry of largest magnitude is positive.
        mean: x̄, [d].
        rows: n.
        centered: Whether the mean was subtracted (principal components).
        scatter: Σ‖x − x̄‖².
        resolution_floor: σ below it are rounding noise.
    """

    singular_values: Tensor
    components: Tensor
    mean: Tensor
    rows: int
    centered: bool
    scatter: float
    resolution_floor: float

    def transform(self, x: Any) -> Any:
        """Coordinates of rows along the components, X Vᵀ or (X − x̄) Vᵀ: equal to U diag(S).

        Args:
            x: Rows, [n, d], float64/float32/float16/bfloat16.

        Returns:
            [n, k], of x's dtype (float32 for half precision), an array of the kind of x.

        Raises:
            InputError: not rows of a floating dtype, or another width.

        Time O(n d k), products in float64.
        """
        rows = self._checked(x)
        result = self._coordinates(rows)
        return restore_kind(x)(result.to(torch.promote_types(rows.dtype, torch.float32)))

    def left(self, x: Any) -> Any:
        """Left singular vectors of the rows, in a second pass: `transform` over σ, [n, k].

        Zero where σ is at most `resolution_floor`: those have none that can be known. Arguments
        and errors are those of `transform`.
        """
        rows = self._checked(x)
        known = self.singular_values > self.resolution_floor
        scale = torch.where(known, 1 / self.singular_values, 0.0).to(rows.device)
        result = self._coordinates(rows) * scale
        return restore_kind(x)(result.to(torch.promote_types(rows.dtype, torch.float32)))

    def _checked(self, x: Any) -> Tensor:
        rows = check_rows(as_tensor(x))
        if rows.shape[1] != len(self.mean):
            raise InputError(
                f"rows have {rows.shape[1]} columns, these axes have {len(self.mean)}; pass rows "
                "of the same source"
            )
        return rows

    def _coordinates(self, rows: Tensor) -> Tensor:
        axes = self.components.T.to(rows.device)
        coordinates = ScaledMatrix(rows).times(axes)
        if self.centered:
            coordinates -= self.mean.to(rows.device) @ axes
        return coordinates


def principal_axes(grams: Grams, rows: int, k: int, *, center: bool) -> PrincipalAxes:
    """The k leading axes of rows from their second moments about a pilot p.

    XᵀX = G + t pᵀ + p tᵀ + n p pᵀ and, centred, G − t tᵀ/n with G = Σyyᵀ, t = Σy, y = x − p; σ² and
    the components are their eigenvalues and eigenvectors.

    Args:
        grams: State S2; only pilot, raw, totals and noise of the raw rows are used.
        rows: n.
        k: How many.
        center: Subtract the mean row.

    Raises:
        InputError: k not in 0..d, or no rows.

    Time O(d³).
    """
    dim = grams.raw.shape[0]
    if not 0 <= k <= dim:
        raise InputError(f"k is {k}; rows of {dim} columns have {dim} axes")
    if rows < 1:
        raise InputError("there are no rows yet; update with rows before asking for their axes")
    pilot, total = grams.pilot[0], grams.totals[0]
    scatter = grams.raw - torch.outer(total, total) / rows
    mean = pilot + total / rows
    second = scatter if center else scatter + rows * torch.outer(mean, mean)
    # No more than n directions, n − 1 about their mean.
    rank = max(0, rows - int(center))
    eigenvalues, vectors = leading_eigenpairs(second, k, rank)
    sigma, components = eigenvalues.sqrt(), vectors.T
    sigma[rank:] = 0.0
    return PrincipalAxes(
        singular_values=sigma,
        components=signed(components),
        mean=mean,
        rows=rows,
        centered=center,
        scatter=max(0.0, float(scatter.trace())),
        resolution_floor=resolution_floor(sigma, dim, float(grams.noise[0])),
    )


def signed(components: Tensor) -> Tensor:
    """Rows [k, d] with the sign that makes their entry of largest magnitude positive."""
    return components * components.gather(1, components.abs().argmax(dim=1, keepdim=True)).sign()
