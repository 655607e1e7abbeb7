"""Other packages' errors, for sentences of our own."""

from __future__ import annotations

_LENGTH = 200


def reason(error: Exception) -> str:
    """The first line of what an error says, or its name when it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:_LENGTH]
