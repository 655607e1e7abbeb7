"""The sums over rows that every exact statistic is a function of (formulas: states S1 and S2)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True)
class RowMoments:
    """Additive sums over the kept rows x_i of [n, d]; x̂ = x/‖x‖ over rows with ‖x‖ > 0.

    A kept row is finite and not masked; zero rows are kept. The five arrays are what kernels add
    to; the properties name their parts. Dtypes: float64, counts int64.

    Attributes:
        sums: [4, d]: Σx, Σx̂, Σx_k², Σx̂_k².
        norm_sums: [3]: Σ‖x‖, Σ‖x‖², Σ‖x‖⁴.
        norm_range: [2]: min ‖x‖ (+inf without rows) and max ‖x‖ (0 without rows).
        abs_max: [d]: max |x_k|.
        counts: [4]: rows kept, of them zero; rows left out as non-finite, as masked.
    """

    sums: Any
    norm_sums: Any
    norm_range: Any
    abs_max: Any
    counts: Any

    @classmethod
    def zeros(cls, dim: int, device: torch.device | str = "cpu") -> RowMoments:
        """The moments of no rows: the neutral element of `merge`."""
        double = partial(torch.zeros, dtype=torch.float64, device=device)
        return cls(
            sums=double(4, dim),
            norm_sums=double(3),
            norm_range=torch.tensor([torch.inf, 0.0], dtype=torch.float64, device=device),
            abs_max=double(dim),
            counts=torch.zeros(4, dtype=torch.int64, device=device),
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The five accumulators, in the order of the op's arguments."""
        return self.sums, self.norm_sums, self.norm_range, self.abs_max, self.counts

    def map(self, function: Callable[[Any], Any]) -> RowMoments:
        """The same moments with `function` applied to every array."""
        return RowMoments(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def merge(self, other: RowMoments) -> RowMoments:
        """Moments of both row sets together; neither operand changes."""
        return RowMoments(
            sums=self.sums + other.sums,
            norm_sums=self.norm_sums + other.norm_sums,
            norm_range=torch.stack(
                [
                    torch.minimum(self.norm_range[0], other.norm_range[0]),
                    torch.maximum(self.norm_range[1], other.norm_range[1]),
                ]
            ),
            abs_max=torch.maximum(self.abs_max, other.abs_max),
            counts=self.counts + other.counts,
        )

    @property
    def sum(self) -> Any:
        """Σx, [d]."""
        return self.sums[0]

    @property
    def unit_sum(self) -> Any:
        """Σx̂, [d]."""
        return self.sums[1]

    @property
    def square_sum(self) -> Any:
        """Σx_k², [d]: the diagonal of the Gram matrix."""
        return self.sums[2]

    @property
    def unit_square_sum(self) -> Any:
        """Σx̂_k², [d]: the diagonal of the normalised Gram matrix."""
        return self.sums[3]

    @property
    def rows(self) -> int:
        """Rows kept: finite, not masked; zero rows included."""
        return int(self.counts[0])

    @property
    def zero_rows(self) -> int:
        """Kept rows without a direction; out of every cosine statistic."""
        return int(self.counts[1])

    @property
    def nonfinite_rows(self) -> int:
        """Rows left out because a value is NaN or infinite."""
        return int(self.counts[2])

    @property
    def masked_rows(self) -> int:
        """Rows left out by the mask."""
        return int(self.counts[3])

    @property
    def directions(self) -> int:
        """N of the cosine statistics: kept rows with ‖x‖ > 0."""
        return self.rows - self.zero_rows


@dataclass(frozen=True)
class Grams:
    """Additive second moments of the kept rows (state S2), float64.

    Rows are taken about a pilot p, a row near their mean: where they are alike, their differences
    are what counts, and those lose nothing to cancellation. A kernel may multiply rounded rows
    Y + Δ; `totals` are then the column sums of the very rows that were multiplied, and `noise` says
    how large Δ is: no eigenvalue of a Gram matrix is off by more than 2 σ₁ ‖Δ‖ + ‖Δ‖².

    Attributes:
        pilot: [2, d]: p of x and of x̂, values of float32.
        raw: [d, d]: Σyyᵀ, y = x − p.
        unit: [d, d]: Σyyᵀ, y = x̂ − p, over rows with a direction.
        totals: [2, d]: Σy of both.
        noise: [2]: expected ‖Δ‖_F² of both, beyond the rounding of float64.
    """

    pilot: Any
    raw: Any
    unit: Any
    totals: Any
    noise: Any

    @classmethod
    def zeros(cls, dim: int, device: torch.device | str = "cpu") -> Grams:
        """The second moments of no rows: the neutral element of `merge`."""
        double = partial(torch.zeros, dtype=torch.float64, device=device)
        return cls(double(2, dim), double(dim, dim), double(dim, dim), double(2, dim), double(2))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The five arrays, in the order of the op's arguments."""
        return self.pilot, self.raw, self.unit, self.totals, self.noise

    def map(self, function: Callable[[Any], Any]) -> Grams:
        """The same second moments with `function` applied to every array."""
        return Grams(*map(function, self.tensors()))

    def about(self, pilot: Tensor, counts: tuple[int, int]) -> Grams:
        """The same second moments about another pilot; counts: rows, and those with a direction."""
        moved = []
        for gram, total, step, n in zip(
            (self.raw, self.unit), self.totals, self.pilot - pilot, counts, strict=True
        ):
            half = total + 0.5 * n * step
            moved.append(torch.addr(gram, half, step).addr_(step, half))
        number = torch.tensor(counts, dtype=torch.float64, device=self.totals.device)[:, None]
        totals = self.totals + number * (self.pilot - pilot)
        return Grams(pilot, moved[0], moved[1], totals, self.noise)

    def merge(self, other: Grams) -> Grams:
        """Second moments of both row sets, about one pilot; neither operand changes."""
        pairs = zip(self.tensors()[1:], other.tensors()[1:], strict=True)
        return Grams(self.pilot, *(mine + theirs for mine, theirs in pairs))


@dataclass
class GroupMoments:
    """Sums over the rows of every group; ids ascend and grow as groups come.

    Attributes:
        ids: The groups' own ids, [G] int64.
        counts: Rows with a direction, [G] int64.
        sums: Σx of them, [G, d] float64.
        unit_sums: Σx̂, [G, d] float64.
        square_norms: Σ‖x‖², [G] float64.
        rows: Finite rows in a group, those without a direction included, [1] int64.
    """

    ids: Tensor
    counts: Tensor
    sums: Tensor
    unit_sums: Tensor
    square_norms: Tensor
    rows: Tensor

    @classmethod
    def zeros(cls, dim: int, device: torch.device | str = "cpu", groups: int = 0) -> GroupMoments:
        """No rows; `groups` groups of id 0."""
        double = torch.zeros(0, dtype=torch.float64, device=device)
        ids = torch.zeros(groups, dtype=torch.int64, device=device)
        return cls(
            ids=ids,
            counts=torch.zeros_like(ids),
            sums=double.new_zeros(groups, dim),
            unit_sums=double.new_zeros(groups, dim),
            square_norms=double.new_zeros(groups),
            rows=ids.new_zeros(1),
        )

    def covering(self, ids: Tensor) -> GroupMoments:
        """The same sums with room for these ids too; itself where it has them all."""
        union = torch.cat([self.ids, ids.to(self.ids.device)]).unique()
        if len(union) == len(self.ids):
            return self
        wider = GroupMoments.zeros(self.sums.shape[1], self.ids.device, len(union))
        where = torch.searchsorted(union, self.ids)
        for name in ("counts", "sums", "unit_sums", "square_norms"):
            getattr(wider, name)[where] = getattr(self, name)
        wider.ids, wider.rows = union, self.rows.clone()
        return wider

    def merge(self, other: GroupMoments) -> GroupMoments:
        """The sums of both row sets; neither changes."""
        merged = self.covering(other.ids)
        if merged is self:
            merged = GroupMoments(**{name: tensor.clone() for name, tensor in vars(self).items()})
        where = torch.searchsorted(merged.ids, other.ids.to(merged.ids.device))
        for name in ("counts", "sums", "unit_sums", "square_norms"):
            theirs = getattr(other, name)
            getattr(merged, name).index_add_(0, where, theirs.to(merged.ids.device))
        merged.rows += other.rows.to(merged.ids.device)
        return merged
