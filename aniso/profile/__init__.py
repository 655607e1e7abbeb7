"""Kernel speed against measured limits."""

from aniso.profile.ceilings import MemoryPass, memory_pass

__all__ = ["MemoryPass", "memory_pass"]
