"""Published experiments as commands: how states drift, what a transform does to them."""

from aniso.experiments.layers import DRIFT_METRICS, LayersReport, layers
from aniso.experiments.query_key import HEAD_METRICS, QueryKeyReport, query_key
from aniso.experiments.sts import StsPairs, StsReport, mean_vectors, read_sts, sts
from aniso.experiments.token_uniformity import (
    TokenUniformityReport,
    Uniformities,
    token_uniformity,
)
from aniso.experiments.untrained_block import (
    BIAS_NORMS,
    BiasPoint,
    BlockSize,
    UntrainedBlockReport,
    untrained_block,
)

__all__ = [
    "BIAS_NORMS",
    "DRIFT_METRICS",
    "HEAD_METRICS",
    "BiasPoint",
    "BlockSize",
    "LayersReport",
    "QueryKeyReport",
    "StsPairs",
    "StsReport",
    "TokenUniformityReport",
    "Uniformities",
    "UntrainedBlockReport",
    "layers",
    "mean_vectors",
    "query_key",
    "read_sts",
    "sts",
    "token_uniformity",
    "untrained_block",
]
