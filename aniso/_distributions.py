"""The distribution of the cosine in every layer, of all pairs or of a sample of rows."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from aniso.metrics import CosineHistogram, cosine_histogram
from aniso.state import RowSample

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from aniso.dumps import DumpLayer, Part, RowWriter
    from aniso.state import LayerState

# Half a million pairs: the 1 % and 99 % quantiles to a hundredth or two, in megabytes per layer.
SAMPLED_ROWS = 1024
# Wide enough for a plot, small enough for results.json.
BINS = 200
# Rows are drawn in so many rounds at most, where masks and zero rows leave few of a round.
_ROUNDS = 8


class RowSampler:
    """Takes a uniform sample of every layer's rows as they come; a writer of rows for `capture`.

    Args:
        size: Rows to keep per layer.
        then: Where the rows go as well.
    """

    def __init__(self, size: int = SAMPLED_ROWS, then: RowWriter | None = None) -> None:
        self.samples: dict[str, RowSample] = {}
        self._size, self._then = size, then

    def append(self, layer: str, rows: Tensor) -> None:
        """Offers rows [n, d] of a layer."""
        if layer not in self.samples:
            self.samples[layer] = RowSample(self._size, rows.shape[-1])
        self.samples[layer].update(rows)
        if self._then is not None:
            self._then.append(layer, rows)

    def finish(self) -> None:
        """As the writer behind it."""
        if self._then is not None:
            self._then.finish()

    def abandon(self) -> None:
        """As the writer behind it."""
        if self._then is not None:
            self._then.abandon()

    def distributions(self, states: Mapping[str, LayerState]) -> dict[str, CosineHistogram]:
        """The distribution of every layer, of all rows or of the sample."""
        return {
            name: _distribution(sample.rows, states[name])
            for name, sample in self.samples.items()
            if len(sample.rows) > 1
        }


def dump_distributions(
    work: Mapping[str, Sequence[DumpLayer]], states: Mapping[str, LayerState]
) -> dict[str, CosineHistogram]:
    """The distribution of every layer of dumps, from rows drawn uniformly and read one by one.

    Layers in files that give single rows only by reading many (compressed ones) are left out.

    Time O(d) per sampled row and reads of as many rows, whatever the dump's size.
    """
    found = {}
    for name, layers in work.items():
        parts = [(layer, part) for layer in layers for part in layer.parts]
        if all(part.single_rows for _, part in parts):
            rows = _drawn(parts)
            if len(rows) > 1:
                found[name] = _distribution(rows, states[name])
    return found


def _distribution(rows: Tensor, state: LayerState) -> CosineHistogram:
    """Over the pairs of these rows, a uniform sample of those of the state that have a direction.

    Confidence is that of the intervals.
    """
    histogram = cosine_histogram(rows, bins=BINS)
    population = max(state.moments.directions, histogram.sampled_rows)
    exact = population == histogram.sampled_rows
    counts, edges = histogram.counts.numpy(), histogram.edges.numpy()
    return replace(histogram, counts=counts, edges=edges, rows=population, exact=exact)


def _drawn(parts: Sequence[tuple[DumpLayer, Part]]) -> Tensor:
    """At least SAMPLED_ROWS rows with a direction, if there are, drawn uniformly.

    Whether another round is drawn depends on how many rows were kept, not on which: given their
    number they are a uniform sample.
    """
    total = sum(part.shape[0] for _, part in parts)
    places = random.Random(0).sample(range(total), min(total, _ROUNDS * SAMPLED_ROWS))
    kept: list[Tensor] = []
    for start in range(0, len(places), SAMPLED_ROWS):
        kept.append(_usable(parts, sorted(places[start : start + SAMPLED_ROWS])))
        if sum(map(len, kept)) >= SAMPLED_ROWS:
            break
    return torch.cat(kept) if kept else torch.empty(0, 1)


def _usable(parts: Sequence[tuple[DumpLayer, Part]], places: Sequence[int]) -> Tensor:
    """The rows at these places that are not masked, finite and not zero."""
    rows = [row for place in places if (row := _row(parts, place)) is not None]
    if not rows:
        return torch.empty(0, parts[0][1].shape[1], dtype=parts[0][1].dtype)
    stacked = torch.cat(rows)
    largest = stacked.double().abs().amax(dim=1)
    usable: Tensor = stacked[(largest > 0) & largest.isfinite()]
    return usable


def _row(parts: Sequence[tuple[DumpLayer, Part]], place: int) -> Tensor | None:
    """Row number `place` of all parts, [1, d]; None where the dump's attention mask drops it."""
    for layer, part in parts:
        if place < part.shape[0]:
            mask = layer.mask_of(part)
            if mask is not None and not int(mask.read(place, place + 1, None)[0]):
                return None
            return part.read(place, place + 1, None)
        place -= part.shape[0]
    return None
