"""All metrics of one layer, from its sums."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from aniso.metrics import cosine, drift, rogue, spectrum
from aniso.metrics._registry import METRICS

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from aniso.moments import Grams, RowMoments


@dataclass(frozen=True)
class LayerMetrics:
    """The numbers of one layer.

    Attributes:
        dim: d, the width of the rows.
        counts: "rows", "zero_rows", "nonfinite_rows", "masked_rows"; of a capture that leaves rows
            out "excluded_rows" (by token id) and "outlier_rows" (by norm) besides.
        metrics: Every key of `METRICS` that the state gives; NaN where undefined for these rows.
        contributions: Share of each dimension in the mean cosine, [d], float64.
        singular_values: σ of the uncentred rows, descending, float64; None without the Gram.
        resolution_floor: σ below it are rounding noise; None without the Gram.
        metrics_of_all: The metrics with the rows that a capture left out; None where none could be.
    """

    dim: int
    counts: dict[str, int]
    metrics: dict[str, float]
    contributions: np.ndarray[Any, np.dtype[np.float64]]
    singular_values: np.ndarray[Any, np.dtype[np.float64]] | None = None
    resolution_floor: float | None = None
    metrics_of_all: dict[str, float] | None = None


def layer_metrics(moments: RowMoments, grams: Grams | None = None) -> LayerMetrics:
    """Every metric that the sums of a layer give.

    Args:
        moments: State S1.
        grams: State S2; None leaves out the spectrum, and variance and entropies of the directions.

    Time O(d³) for the eigenvalues.
    """
    dim = moments.sums.shape[1]
    metrics = _first_order(moments)
    sigma = floor = None
    if grams is not None:
        counts = (moments.rows, moments.directions)
        origin = grams.about(torch.zeros_like(grams.pilot), counts)
        sigma = spectrum.singular_values(origin.raw, moments.rows)
        floor = spectrum.resolution_floor(sigma, dim, float(grams.noise[0]))
        eigenvalues = spectrum.covariance_eigenvalues(grams.raw, grams.totals[0], moments.rows)
        metrics |= _directional(moments.directions, grams, origin.unit)
        metrics |= _spectral(sigma, dim)
        metrics |= _centred(eigenvalues, dim)
    return LayerMetrics(
        dim=dim,
        counts={
            "rows": moments.rows,
            "zero_rows": moments.zero_rows,
            "nonfinite_rows": moments.nonfinite_rows,
            "masked_rows": moments.masked_rows,
        },
        metrics={key: metrics[key] for key in METRICS if key in metrics},
        contributions=cosine.contributions(moments).cpu().numpy(),
        singular_values=None if sigma is None else sigma.cpu().numpy(),
        resolution_floor=floor,
    )


def _first_order(moments: RowMoments) -> dict[str, float]:
    return {
        "mean_cosine": cosine.mean_cosine(moments),
        **{f"rogue_share_{k}": rogue.rogue_share(moments, k) for k in (1, 3, 10)},
        "drift_norm": drift.drift_norm(moments),
        "mean_norm": drift.mean_norm(moments),
        "rms_norm": drift.rms_norm(moments),
        "relative_drift": drift.relative_drift(moments),
    }


def _directional(directions: int, grams: Grams, unit_gram: Tensor) -> dict[str, float]:
    var = cosine.var_cosine(directions, grams.unit, grams.totals[1], grams.pilot[1])
    return {
        "var_cosine": var,
        "std_cosine": math.sqrt(var),
        "von_neumann_entropy": spectrum.von_neumann_entropy(unit_gram, directions),
        "renyi2_entropy": spectrum.renyi2_entropy(unit_gram, directions),
    }


def _spectral(sigma: Tensor, dim: int) -> dict[str, float]:
    return {
        **{f"explained_variance_{k}": spectrum.explained_variance(sigma, k) for k in (1, 3, 10)},
        "rankme": spectrum.rankme(sigma),
        "singular_entropy_kl": spectrum.singular_entropy_kl(sigma, dim),
        "stable_rank": spectrum.stable_rank(sigma),
        "sv_skewness": spectrum.sv_skewness(sigma),
        "sv_median_ratio": spectrum.sv_median_ratio(sigma),
    }


def _centred(lam: Tensor, dim: int) -> dict[str, float]:
    return {
        "alpha_req": spectrum.alpha_req(lam),
        "participation_ratio": spectrum.participation_ratio(lam),
        "isoscore": spectrum.isoscore(lam, dim),
        "spectral_anisotropy": spectrum.spectral_anisotropy(lam),
        "effective_rank": spectrum.effective_rank(lam),
    }
