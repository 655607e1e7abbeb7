"""Sizes in words."""

from __future__ import annotations

_UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def size_text(size: float) -> str:
    """Three digits of a number of bytes, in the largest unit that fits: "3.07 GB"."""
    for unit, factor in _UNITS:
        if size >= factor:
            return f"{float(f'{size / factor:.3g}'):g} {unit}"
    return f"{size:.0f} bytes"
