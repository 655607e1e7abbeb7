"""The sums over paired rows that comparisons of two sources are functions of (formulas: S5)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from aniso.metrics.hsic import HsicSums
from aniso.moments import RowMoments

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_GROUPS = ("moments_x", "moments_y", "xx", "xy", "yy")


@dataclass(frozen=True)
class PairedSums:
    """Additive sums over pairs of rows (x_i, y_i) that are kept: both finite, neither masked.

    Dtype float64, counts int64.

    Attributes:
        moments_x: S1 of x; its directions Σx̂, Σx̂_k² over the pairs of which neither row is zero,
            `zero_rows` counts the others.
        moments_y: S1 of y over the same pairs.
        unit_xx: Σx̂x̂ᵀ over the pairs of which neither row is zero, [dx, dx].
        unit_xy: Σx̂ŷᵀ, [dx, dy].
        unit_yy: Σŷŷᵀ, [dy, dy].
        origin_x: What is subtracted from x in the sums below, [dx]: about a point near the mean
            they do not cancel.
        origin_y: What is subtracted from y, [dy].
        xx: Sums of x with itself.
        xy: Sums of x with y.
        yy: Sums of y with itself.
    """

    moments_x: RowMoments
    moments_y: RowMoments
    unit_xx: Tensor
    unit_xy: Tensor
    unit_yy: Tensor
    origin_x: Tensor
    origin_y: Tensor
    xx: HsicSums
    xy: HsicSums
    yy: HsicSums

    @classmethod
    def zeros(cls, dim_x: int, dim_y: int, device: torch.device | str = "cpu") -> PairedSums:
        """The sums of no rows."""
        xx = HsicSums.zeros(dim_x, dim_x, device)
        xy = HsicSums.zeros(dim_x, dim_y, device)
        yy = HsicSums.zeros(dim_y, dim_y, device)
        return cls(
            moments_x=RowMoments.zeros(dim_x, device),
            moments_y=RowMoments.zeros(dim_y, device),
            unit_xx=torch.zeros_like(xx.cross),
            unit_xy=torch.zeros_like(xy.cross),
            unit_yy=torch.zeros_like(yy.cross),
            origin_x=torch.zeros_like(xy.sum_a),
            origin_y=torch.zeros_like(xy.sum_b),
            xx=xx,
            xy=xy,
            yy=yy,
        )

    @property
    def rows(self) -> int:
        """Pairs kept."""
        return self.moments_x.rows

    def tensors(self) -> dict[str, Tensor]:
        """All accumulators by name, such as "xy.cross"."""
        flat: dict[str, Tensor] = {}
        for name, value in vars(self).items():
            if name in _GROUPS:
                flat |= {f"{name}.{part}": tensor for part, tensor in vars(value).items()}
            else:
                flat[name] = value
        return flat

    def map(self, function: Callable[[Tensor], Tensor]) -> PairedSums:
        """The same sums with `function` applied to every tensor."""
        mapped: dict[str, Any] = {}
        for name, value in vars(self).items():
            mapped[name] = value.map(function) if name in _GROUPS else function(value)
        return PairedSums(**mapped)

    def about(self, origin_x: Tensor, origin_y: Tensor) -> PairedSums:
        """The same sums about other origins."""
        t, u = self.origin_x - origin_x, self.origin_y - origin_y
        return replace(
            self,
            origin_x=origin_x,
            origin_y=origin_y,
            xx=self.xx.moved(t, t),
            xy=self.xy.moved(t, u),
            yy=self.yy.moved(u, u),
        )

    def merge(self, other: PairedSums) -> PairedSums:
        """The sums of both sets of pairs, about an origin of one of them; no operand changes."""
        if not self.rows and other.rows:
            return other.merge(self)
        moved = other.about(self.origin_x, self.origin_y)
        return replace(
            self,
            unit_xx=self.unit_xx + other.unit_xx,
            unit_xy=self.unit_xy + other.unit_xy,
            unit_yy=self.unit_yy + other.unit_yy,
            **{name: getattr(self, name).merge(getattr(moved, name)) for name in _GROUPS},
        )
