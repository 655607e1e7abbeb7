"""Pure functions from sums to numbers, each with its formula and citation."""

from aniso.metrics._registry import METRICS, Metric
from aniso.metrics.cosine import CosineStats, cosine_stats
from aniso.metrics.groups import GroupCosine, first_token_cosine, group_cosine
from aniso.metrics.layer import LayerMetrics, layer_metrics

__all__ = [
    "METRICS",
    "CosineStats",
    "GroupCosine",
    "LayerMetrics",
    "Metric",
    "cosine_stats",
    "first_token_cosine",
    "group_cosine",
    "layer_metrics",
]
