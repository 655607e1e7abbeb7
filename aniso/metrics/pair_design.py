"""How a sample of rows was drawn: what its pairs may say about all pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aniso.errors import InputError
from aniso.ops._arrays import as_tensor


@dataclass(frozen=True)
class PairDesign:
    """A uniform sample, without replacement, of units: rows, or whole documents.

    Every interval of this package rests on one lemma. Let g be a kernel of two units with mean 0
    over the pairs of the population, U_m its mean over the sampled pairs, φ convex, k = ⌊m/2⌋:

        E φ((1 − 1/N) U_m) ≤ E φ(mean of k independent copies of g).

    Drawn with replacement, U is an average of means of k independent pairs (Hoeffding 1963, §5),
    and given the set of distinct units drawn its mean is (1 − 1/N) U_m when g(D, D) = 0 (the
    argument of his Theorem 4; disjoint pairs drawn without replacement alone do not obey it).
    U_m is a reverse martingale, so by Doob the tail so bounded at `least` units holds at once for
    all larger m: the number of documents may depend on their lengths.

    Documents: g = ∫(h − θ)dμ over the row pairs of two documents, a pair weighted so that the
    mean of μ is 1; its mass is at most κ, and μ̂ in the sample, so that the estimate, normalised
    by μ̂, deviates ρ = κ/μ̂ times as much. Documents of one length have ρ = 1.

    Attributes:
        units: m, the units sampled.
        population: N, all units; None when unlimited.
        least: The fewest units that the rule of sampling could have kept; None means `units`.
        unevenness: ρ ≥ 1; 1 for rows.

    Raises:
        InputError: more units than the population has, or a negative number.
    """

    units: int
    population: int | None = None
    least: int | None = None
    unevenness: float = 1.0

    def __post_init__(self) -> None:
        most = self.units if self.population is None else self.population
        if not 0 <= self.units <= most or not 0 <= self.blocks <= self.units:
            raise InputError(
                f"{self.units} units (at least {self.least}) cannot be a sample of "
                f"{self.population}; pass units ≤ population and least ≤ units"
            )

    @classmethod
    def of_documents(
        cls, sizes: Any, *, documents: int, rows: int, largest: int, least: int | None = None
    ) -> PairDesign:
        """The design of a sample of whole documents.

        Args:
            sizes: Rows of each sampled document, [m].
            documents: N, documents in the population.
            rows: Rows in the population.
            largest: Rows of its longest document.
            least: The fewest documents that the rule of sampling could have kept.

        Example:
            >>> PairDesign.of_documents([4, 4, 4], documents=10, rows=40, largest=4).unevenness
            1.0
        """
        lengths = np.asarray(sizes, dtype=np.float64)
        m, pairs = len(lengths), rows * (rows - 1)
        within = float((lengths * (lengths - 1)).sum())
        between = float(lengths.sum() ** 2 - (lengths**2).sum())
        if m < 2 or not pairs:
            return cls(m, documents, least)
        mass = documents * ((documents - 1) * between / (m - 1) + within) / m
        largest_mass = documents * largest * (documents * largest - 1)
        return cls(m, documents, least, max(1.0, largest_mass / mass))

    @property
    def exact(self) -> bool:
        """Whether every unit is in the sample."""
        return self.units == self.population

    @property
    def blocks(self) -> int:
        """Independent pairs that the sample is worth at least, k = ⌊least/2⌋."""
        return (self.units if self.least is None else self.least) // 2

    @property
    def shrink(self) -> float:
        """1 − 1/N."""
        return 1.0 if self.population is None else 1 - 1 / max(2, self.population)

    @property
    def stretch(self) -> float:
        """ρ/(1 − 1/N): how much more the estimate deviates than k independent pairs."""
        return self.unevenness / self.shrink

    @property
    def within_weight(self) -> float:
        """(m − 1)/(N − 1): a pair within a document against one across, which are drawn rarer."""
        if self.population is None or self.population < 2:
            return 1.0
        return (self.units - 1) / (self.population - 1)

    def shares(self, counts: Any, within: Any = None) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Estimated share of all pairs of the population in every bin, [bins], sum 1.

        Args:
            counts: Sampled pairs i < j per bin, [bins].
            within: Those of them within one document, [bins]; None when rows were sampled.

        Raises:
            InputError: no pairs, negative counts, or `within` of another shape.
        """
        weights = _counts(counts, "counts")
        if within is not None:
            inside = _counts(within, "within")
            if inside.shape != weights.shape or (inside > weights).any():
                raise InputError("within must count some of the pairs of counts, bin by bin")
            weights = weights - (1 - self.within_weight) * inside
        total = float(weights.sum())
        if not total > 0:
            raise InputError("counts holds no pairs; sample two rows or more")
        return weights / total


def _counts(counts: Any, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    array = as_tensor(counts, name).cpu().double().numpy()
    if array.ndim != 1 or not (array >= 0).all():
        raise InputError(f"{name} has shape {list(array.shape)}; it must be counts ≥ 0, [bins]")
    return array
