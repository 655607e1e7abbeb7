"""Pure functions from sums to numbers, each with its formula and citation."""

from aniso.metrics._registry import METRICS, Metric
from aniso.metrics.cosine_histogram import CosineHistogram, cosine_histogram, cosine_quantile
from aniso.metrics.cosine_stats import CosineStats, cosine_stats
from aniso.metrics.groups import GroupCosine, first_token_cosine, group_cosine
from aniso.metrics.layer import LayerMetrics, layer_metrics
from aniso.metrics.neighbourhood import lsds, rbf_distance, token_uniformity
from aniso.metrics.pair_design import PairDesign
from aniso.metrics.pair_sample import (
    DistributionBand,
    Interval,
    distribution_band,
    mean_interval,
    quantile_interval,
    within_counts,
)
from aniso.metrics.paired import Comparison, compare_metrics, compare_sums
from aniso.metrics.rogue import (
    RogueDimensions,
    WithoutDimensions,
    rogue_dimensions,
    rogue_share,
    without_dimensions,
)
from aniso.metrics.uniformity import Uniformity, uniformity, uniformity_bounds

__all__ = [
    "METRICS",
    "Comparison",
    "CosineHistogram",
    "CosineStats",
    "DistributionBand",
    "GroupCosine",
    "Interval",
    "LayerMetrics",
    "Metric",
    "PairDesign",
    "RogueDimensions",
    "Uniformity",
    "WithoutDimensions",
    "compare_metrics",
    "compare_sums",
    "cosine_histogram",
    "cosine_quantile",
    "cosine_stats",
    "distribution_band",
    "first_token_cosine",
    "group_cosine",
    "layer_metrics",
    "lsds",
    "mean_interval",
    "quantile_interval",
    "rbf_distance",
    "rogue_dimensions",
    "rogue_share",
    "token_uniformity",
    "uniformity",
    "uniformity_bounds",
    "within_counts",
    "without_dimensions",
]
