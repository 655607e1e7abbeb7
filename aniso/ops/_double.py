"""Blocks of rows in float64, for the products that torch's matrix multiplication does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def finite_rows(rows: Tensor, mask: Tensor | None = None) -> Tensor:
    """Which rows count, [n] bool: all values finite, and kept by the mask."""
    # The largest magnitude carries NaN and infinity: a third of the time of isfinite().all().
    finite = torch.isfinite(rows.abs().amax(dim=1))
    return finite if mask is None else finite & mask


def directions(rows: Tensor) -> Tensor:
    """x/‖x‖, zero rows left at zero; scaled by max|x| first, so that no square overflows."""
    largest = torch.linalg.vector_norm(rows, math.inf, dim=1, keepdim=True)
    scaled = rows / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled.div_(torch.where(norm > 0, norm, 1.0))


def inverse_norms(rows: Tensor, keep: Tensor | None = None) -> Tensor:
    """1/‖x‖ in float64, [n]; 0 for rows of zeros, rows that are not finite, and others than `keep`.

    The rows are not copied. Those of float64 must have squares within its range.
    """
    norm = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    counted = (norm > 0) & torch.isfinite(norm)
    if keep is not None:
        counted &= keep
    return torch.where(counted, 1.0 / torch.where(counted, norm, 1.0), 0.0)
