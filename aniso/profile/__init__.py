"""Kernel speed against measured limits."""

from aniso.profile.ceilings import read_bandwidth

__all__ = ["read_bandwidth"]
