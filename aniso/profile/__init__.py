"""Kernel speed against measured limits."""

from aniso.profile.ceilings import Ceilings, MemoryPass, measure_ceilings, memory_pass
from aniso.profile.kernels import Kernel, kernel, registered_kernels
from aniso.profile.measurement import Measurement, Timing
from aniso.profile.report import ProfileReport
from aniso.profile.run import profile
from aniso.profile.verdicts import Change, changes

__all__ = [
    "Ceilings",
    "Change",
    "Kernel",
    "Measurement",
    "MemoryPass",
    "ProfileReport",
    "Timing",
    "changes",
    "kernel",
    "measure_ceilings",
    "memory_pass",
    "profile",
    "registered_kernels",
]
