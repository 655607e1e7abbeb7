"""Published experiments as commands: how states drift, what a transform does to them."""

from aniso.experiments.sts import StsPairs, StsReport, mean_vectors, read_sts, sts
from aniso.experiments.untrained_block import (
    BIAS_NORMS,
    BiasPoint,
    BlockSize,
    UntrainedBlockReport,
    untrained_block,
)

__all__ = [
    "BIAS_NORMS",
    "BiasPoint",
    "BlockSize",
    "StsPairs",
    "StsReport",
    "UntrainedBlockReport",
    "mean_vectors",
    "read_sts",
    "sts",
    "untrained_block",
]
