"""Pure functions from sums to numbers, each with its formula and citation."""

from aniso.metrics._registry import METRICS, Metric
from aniso.metrics.cosine_histogram import CosineHistogram, cosine_histogram, cosine_quantile
from aniso.metrics.cosine_stats import CosineStats, cosine_stats
from aniso.metrics.groups import (
    GroupCosine,
    cosines_of_groups,
    first_token_cosine,
    group_cosine,
)
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
from aniso.metrics.principal_axes import PrincipalAxes, principal_axes
from aniso.metrics.rogue import (
    RogueDimensions,
    WithoutDimensions,
    rogue_dimensions,
    rogue_share,
    without_dimensions,
)
from aniso.metrics.sequence_spectra import SequenceSpectra, sequence_spectra
from aniso.metrics.sequence_summary import SequenceStatistic, SequenceSummary
from aniso.metrics.sketch import SketchedAxes
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
    "PrincipalAxes",
    "RogueDimensions",
    "SequenceSpectra",
    "SequenceStatistic",
    "SequenceSummary",
    "SketchedAxes",
    "Uniformity",
    "WithoutDimensions",
    "compare_metrics",
    "compare_sums",
    "cosine_histogram",
    "cosine_quantile",
    "cosine_stats",
    "cosines_of_groups",
    "distribution_band",
    "first_token_cosine",
    "group_cosine",
    "layer_metrics",
    "lsds",
    "mean_interval",
    "principal_axes",
    "quantile_interval",
    "rbf_distance",
    "rogue_dimensions",
    "rogue_share",
    "sequence_spectra",
    "token_uniformity",
    "uniformity",
    "uniformity_bounds",
    "within_counts",
    "without_dimensions",
]
