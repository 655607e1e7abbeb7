"""Blocks of rows in float64, for the products that torch's matrix multiplication does."""

from __future__ import annotations

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
    largest = rows.abs().amax(dim=1, keepdim=True)
    scaled = rows / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return scaled / torch.where(norm > 0, norm, 1.0)
