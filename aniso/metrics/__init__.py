"""Pure functions from sums to numbers, each with its formula and citation."""

from aniso.metrics._registry import METRICS, Metric
from aniso.metrics.cosine import CosineStats, cosine_stats
from aniso.metrics.layer import LayerMetrics, layer_metrics

__all__ = ["METRICS", "CosineStats", "LayerMetrics", "Metric", "cosine_stats", "layer_metrics"]
