"""Errors whose message a user can act on."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used. One sentence: what was found, where, what to do."""
