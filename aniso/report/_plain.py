"""Values as JSON types, and as text for people."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from datetime import date
from typing import Any

import numpy as np

EMPTY = "–"
LISTED = 3


def plain(value: Any) -> Any:
    """Return `value` in JSON types: NaN and infinities are None, unknown objects their text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain(item) for item in value]
    return value.isoformat() if isinstance(value, date) else str(value)


def describe(value: Any) -> str:
    """Return a provenance value as one line; of a long list, its head and the number left."""
    value = plain(value)
    if isinstance(value, dict):
        return "; ".join(f"{key}: {describe(item)}" for key, item in value.items())
    if isinstance(value, list):
        more = [f"and {len(value) - LISTED:,} more"] if len(value) > LISTED else []
        return ", ".join([describe(item) for item in value[:LISTED]] + more)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return EMPTY if value is None else str(value)


def column(values: Sequence[float], most: int = 6) -> list[str]:
    """Return numbers with the same count of decimals: four or five digits for the largest."""
    finite = [abs(value) for value in values if math.isfinite(value)]
    largest = max(finite, default=0.0)
    style = ".0f"
    if largest and not 1e-3 <= largest < 1e7:
        style = ".3e"
    elif largest:
        power = math.floor(math.log10(largest))
        style = f".{min(most, max(0, 4 - power if power >= 0 else 3 - power))}f"
    return [format(value, style) if math.isfinite(value) else EMPTY for value in values]


def count(value: int, narrow: bool = False) -> str:
    """Return a count with thousands separators, or in at most six characters if `narrow`."""
    if not narrow or value < 1_000_000:
        return f"{value:,}" if not narrow else str(value)
    power = min(4, (len(str(value)) - 1) // 3)
    scaled = value / 1000**power
    return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f}{'kMGT'[power - 1]}"
