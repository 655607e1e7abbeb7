"""Published experiments as commands: what a transform does to a task."""

from aniso.experiments.sts import StsPairs, StsReport, mean_vectors, read_sts, sts

__all__ = ["StsPairs", "StsReport", "mean_vectors", "read_sts", "sts"]
