"""How much memory a capture takes, known before it runs, and what fits a budget."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aniso._sizes import size_text
from aniso.errors import InputError
from aniso.metrics.sketch import PROBES
from aniso.models.inputs import device_of
from aniso.state import rows_that_wait

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aniso.models.layer_sums import StateKind
    from aniso.models.sites import HookPoint

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("KMGT", start=1)}
# A smaller sketch has no axis worth its name; each step down halves it.
_SMALLEST_SKETCH, _LARGEST_SKETCH = 16, 1024


@dataclass(frozen=True)
class MemoryPlan:
    """What the states of a capture take.

    Attributes:
        kind: Which sums are kept of every layer.
        layers: (device, layers, bytes of one layer) of layers of one width on one device.
        unknown: Names of layers whose width shows only when they run; they are in no sum.
        wanted: Which sums were asked for; another `kind` where they did not fit the budget.
    """

    kind: StateKind
    layers: tuple[tuple[str, int, int], ...]
    unknown: tuple[str, ...]
    wanted: StateKind

    @property
    def bytes_by_device(self) -> dict[str, int]:
        """{device: bytes of all states}."""
        found: dict[str, int] = {}
        for device, count, size in self.layers:
            found[device] = found.get(device, 0) + count * size
        return found

    def __str__(self) -> str:
        parts = [
            f"{count} × {size_text(size)} = {size_text(count * size)} on {device}"
            for device, count, size in self.layers
        ]
        if self.unknown:
            parts.append(f"{len(self.unknown)} of a width that shows when they run")
        text = f"states of {', '.join(parts)} ({describe(self.kind)})"
        if self.kind == self.wanted:
            return text
        return f"{text}; {describe(self.wanted)} do not fit the memory that was given"


def describe(kind: StateKind) -> str:
    """The sums of a kind in words."""
    words = ["moments"]
    if kind.gram:
        words.append("both Grams")
    if kind.sketch:
        words.append(f"a sketch of {kind.sketch} directions")
    text = " and ".join(words)
    text += ", of rows left out as well" if kind.leaves_out else ""
    return text + (", groups as they come" if kind.groups else "")


def memory_plan(
    points: Sequence[HookPoint], kind: StateKind, budget: str | int | None = None
) -> MemoryPlan:
    """The states of a kind, or the richest ones that fit the budget on every device.

    Full Grams; else a sketch of 1024, 512, … 16 directions; else moments alone.

    Args:
        points: What is captured.
        kind: Which sums are wanted.
        budget: Bytes, or a text such as "4GiB"; None takes any.

    Raises:
        InputError: no such amount, widths that are not known, or too little for moments.
    """
    plan = _plan(points, kind, kind)
    if budget is None:
        return plan
    limit = parse_bytes(budget)
    if plan.unknown:
        raise InputError(
            f"the width of {plan.unknown[0]} shows only when it runs, so its memory cannot be "
            "planned; leave memory out, or that layer"
        )
    widest = min((point.width or 0 for point in points), default=0)
    candidates = [kind]
    if kind.gram:
        size = _LARGEST_SKETCH
        while size >= _SMALLEST_SKETCH:
            if 2 * size <= widest:
                candidates.append(replace(kind, gram=False, sketch=size))
            size //= 2
        candidates.append(replace(kind, gram=False))
    for candidate in candidates:
        plan = _plan(points, candidate, kind)
        if max(plan.bytes_by_device.values()) <= limit:
            return plan
    needed = max(plan.bytes_by_device.values())
    raise InputError(
        f"memory is {size_text(limit)}, but moments alone need {size_text(needed)}; give more, or "
        "capture fewer layers"
    )


def parse_bytes(amount: str | int) -> int:
    """Bytes of an amount such as 4_000_000, "500MB", "4GiB" or "1.5 TB".

    Raises:
        InputError: it is no positive amount.
    """
    found = re.fullmatch(r"([\d.]+)\s*([KMGT]?i?)B?", str(amount).strip(), re.IGNORECASE)
    try:
        unit = "" if found is None else found[2][:1].upper() + found[2][1:].lower()
        size = 0 if found is None else int(float(found[1]) * _UNITS[unit])
    except (ValueError, KeyError):
        size = 0
    if size <= 0:
        raise InputError(f"memory is {amount!r}; pass bytes, or a text such as 4GiB or 500MB")
    return size


def _plan(points: Sequence[HookPoint], kind: StateKind, wanted: StateKind) -> MemoryPlan:
    counted: dict[tuple[str, int], int] = {}
    unknown = []
    for point in points:
        if point.width is None:
            unknown.append(point.name)
        else:
            device = str(device_of(point.module))
            place = (device, _bytes(point.width, kind, device))
            counted[place] = counted.get(place, 0) + 1
    layers = tuple((device, count, size) for (device, size), count in counted.items())
    return MemoryPlan(kind, layers, tuple(unknown), wanted)


def _bytes(dim: int, kind: StateKind, device: str) -> int:
    """Bytes of the states of one layer; groups, which come as they come, aside."""
    moments = 8 * (5 * dim + 9)
    # Of both Grams, and of the rows that wait for them.
    grams = (
        8 * (2 * dim * dim + 4 * dim + 2 + rows_that_wait(dim, device) * dim) if kind.gram else 0
    )
    sketch = 8 * (2 * dim * (kind.sketch + PROBES) + 2 * dim + 4) if kind.sketch else 0
    return (1 + kind.leaves_out) * (moments + grams) + sketch
