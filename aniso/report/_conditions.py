"""Conditions on a comparison, such as `mean_cosine.increase>0.05`: what a CI job fails on."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from aniso.errors import InputError

if TYPE_CHECKING:
    from aniso.metrics import Comparison
    from aniso.report._comparison import ComparisonReport

_GRAMMAR = re.compile(r"(\w+)(?:\.(increase|decrease|change))?\s*([<>])\s*([-+.\deE]+)")
_PAIRED = ("rsa_pearson", "debiased_cka")


@dataclass(frozen=True)
class Condition:
    """A number of a comparison that is too large, or too small.

    Attributes:
        text: As it was written.
        key: A metric, "rsa_pearson" or "debiased_cka".
        what: "increase" (B less A), "decrease" (A less B), "change" (either); "" for the two
            numbers that are none of one source.
        above: Whether the condition holds above the limit, else below it.
        limit: The limit.
    """

    text: str
    key: str
    what: str
    above: bool
    limit: float

    @classmethod
    def parse(cls, text: str) -> Condition:
        """The condition that `text` writes, METRIC.increase>NUMBER or rsa_pearson<NUMBER.

        Raises:
            InputError: it is not of that form, or there is no such metric.
        """
        from aniso.metrics import METRICS

        found = _GRAMMAR.fullmatch(text.strip())
        limit = _number(found[4]) if found else math.nan
        if found is None or math.isnan(limit):
            raise InputError(
                f"{text!r} is no condition; write METRIC.increase>NUMBER, .decrease, .change, or "
                "rsa_pearson<NUMBER"
            )
        key, what = found[1], found[2] or ""
        if key not in METRICS and key not in _PAIRED:
            near = get_close_matches(key, [*METRICS, *_PAIRED], n=3, cutoff=0.3)
            raise InputError(
                f"no metric is called {key!r}; near names are {', '.join(near) or 'none'}"
            )
        if bool(what) == (key in _PAIRED):
            right = key if key in _PAIRED else f"{key}.increase, {key}.decrease or {key}.change"
            raise InputError(f"{text!r} cannot be compared; write {right}")
        return cls(text, key, what, found[3] == ">", limit)

    def holds(self, layer: Comparison) -> float | None:
        """The number where the condition holds of a layer, else None; NaN where it is undefined."""
        value = self._value(layer)
        if math.isnan(value):
            return value
        return value if (value > self.limit if self.above else value < self.limit) else None

    def _value(self, layer: Comparison) -> float:
        if self.key in _PAIRED:
            value = getattr(layer, self.key)
            return math.nan if value is None else float(value)
        delta = layer.delta.get(self.key, math.nan)
        return {"increase": delta, "decrease": -delta, "change": abs(delta)}[self.what]


def failures(report: ComparisonReport, conditions: list[Condition]) -> list[str]:
    """A sentence for every condition and layer of which it holds.

    Raises:
        InputError: a number is undefined in every layer, so that the condition could never hold.
    """
    found = []
    for condition in conditions:
        values = {name: condition.holds(layer) for name, layer in report.layers.items()}
        undefined = [name for name, value in values.items() if value is not None and value != value]
        if len(undefined) == len(values):
            raise InputError(
                f"{condition.key} is undefined in every layer of these sources; compare dumps of "
                f"the same rows, or leave {condition.text!r} out"
            )
        found += [
            f"{condition.text}: {value:.6g} in {name}"
            for name, value in values.items()
            if value is not None and value == value
        ]
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
