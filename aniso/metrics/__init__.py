"""Pure functions from sums to numbers, each with its formula and citation."""

from aniso.metrics._registry import METRICS, Metric
from aniso.metrics.cosine import CosineStats, cosine_stats
from aniso.metrics.layer import LayerMetrics, layer_metrics
from aniso.metrics.paired import Comparison, compare_metrics, compare_sums

__all__ = [
    "METRICS",
    "Comparison",
    "CosineStats",
    "LayerMetrics",
    "Metric",
    "compare_metrics",
    "compare_sums",
    "cosine_stats",
    "layer_metrics",
]
