"""Matrices with given singular values."""

from __future__ import annotations

import torch


def with_spectrum(values, m, n, batch=()):
    """Random matrices [*batch, m, n], float64, with these singular values."""
    k = len(values)
    u = torch.linalg.qr(torch.randn(*batch, m, k, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(*batch, n, k, dtype=torch.float64)).Q
    return (u * torch.tensor(values, dtype=torch.float64)) @ v.mT


SPECTRA = {
    "random": [9.1, 5.3, 4.2, 2.9, 1.7],
    "repeated": [5.0, 5.0, 2.0, 2.0, 2.0],
    "all equal": [3.0, 3.0, 3.0, 3.0, 3.0],
    "clustered": [5.0, 5.0 - 1e-9, 5.0 - 1e-6, 2.0, 2.0 + 1e-12],
    "small": [4.0, 1.0, 1e-3, 1e-4, 1e-5],
    "one large": [50.0, 1.1, 1.0, 0.9, 0.8],
    "below alpha": [3.0, 1.0, 0.3, 0.2, 0.1],
}
RANK_DEFICIENT = {
    "rank 2": [4.0, 2.0, 0.0, 0.0, 0.0],
    "rank 1": [2.0, 0.0, 0.0, 0.0, 0.0],
    "repeated rank 3": [2.0, 2.0, 2.0, 0.0, 0.0],
}
