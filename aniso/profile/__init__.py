"""Kernel speed against measured limits."""

from aniso.profile.ceilings import copy_bandwidth, read_bandwidth

__all__ = ["copy_bandwidth", "read_bandwidth"]
