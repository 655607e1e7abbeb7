"""The finding of an analysis in a sentence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aniso.metrics import LayerMetrics

# Layers belong to the most alike while their mean cosine is within a tenth of the largest.
_ALIKE = 0.9
# As many dimensions as the report's plots show; more than that are no rogue few.
_FEW = 10


def summary(layers: Mapping[str, LayerMetrics]) -> str:
    """Return which layers are most alike, by how much, and which dimensions make it so.

    The layers are the run about the largest mean cosine that stays within a tenth of it; the
    dimensions are the fewest that make half of the mean cosine in the largest's layer. Empty for
    fewer than two layers.
    """
    known = {name: layer.metrics.get("mean_cosine", math.nan) for name, layer in layers.items()}
    if sum(math.isfinite(value) for value in known.values()) < 2:
        return ""
    run = _run(list(known.values()))
    names = list(known)[run[0] : run[1] + 1]
    mean = sum(known[name] for name in names) / len(names)
    where = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
    peak = max(names, key=known.__getitem__)
    return f"The rows of {where} are most alike: mean cosine {mean:z.2f}{_cause(layers[peak])}."


def _run(means: list[float]) -> tuple[int, int]:
    """Return the first and last place of the run about the largest mean."""
    peak = int(np.nanargmax(means))
    least = _ALIKE * means[peak] if means[peak] > 0 else means[peak]
    first = last = peak
    while first > 0 and means[first - 1] >= least:
        first -= 1
    while last + 1 < len(means) and means[last + 1] >= least:
        last += 1
    return first, last


def _cause(layer: LayerMetrics) -> str:
    mean = layer.metrics["mean_cosine"]
    shares = np.nan_to_num(np.asarray(layer.contributions))
    if not mean > 0.05 or not len(shares):
        return ""
    dims = np.argsort(-shares, kind="stable")[:_FEW]
    reached = shares[dims].cumsum() >= mean / 2
    if len(shares) <= _FEW or not reached.any():
        part = shares[dims].sum() / mean
        return f", made by no few dimensions (the largest {len(dims)} make {part:.0%} of it)"
    few = dims[: int(reached.argmax()) + 1]
    listed = ", ".join(map(str, few))
    word, index = ("dimension", "index") if len(few) == 1 else ("dimensions", "indices")
    part = f"{shares[few].sum() / mean:.0%}"
    return f", {part} of it from {len(few)} rogue {word} of {layer.dim:,} ({index} {listed})"
