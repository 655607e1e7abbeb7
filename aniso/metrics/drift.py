"""How far the mean of the rows lies from the origin (Godey et al. 2024)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from aniso.moments import RowMoments


def drift_norm(moments: RowMoments) -> float:
    """‖Σx‖/N over the kept rows; NaN without rows."""
    if not moments.rows:
        return math.nan
    largest = float(moments.sum.abs().max())
    if not 0 < largest < math.inf:
        return largest / moments.rows
    # Scaled, so that no square leaves the range of float64.
    return largest * float(torch.linalg.vector_norm(moments.sum / largest)) / moments.rows


def mean_norm(moments: RowMoments) -> float:
    """Σ‖x‖/N; NaN without rows."""
    return float(moments.norm_sums[0]) / moments.rows if moments.rows else math.nan


def rms_norm(moments: RowMoments) -> float:
    """√(Σ‖x‖²/N); NaN without rows."""
    return math.sqrt(float(moments.norm_sums[1]) / moments.rows) if moments.rows else math.nan


def relative_drift(moments: RowMoments) -> float:
    """drift_norm/mean_norm, in [0, 1]; NaN when every row is zero."""
    mean = mean_norm(moments)
    return drift_norm(moments) / mean if mean > 0 else math.nan
