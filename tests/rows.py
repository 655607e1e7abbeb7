"""Rows that are hard in one way each, and tolerances with their argument."""

from __future__ import annotations

import math

import torch

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SIZES = [(0, 5), (1, 1), (2, 7), (7, 63), (63, 257), (257, 768), (1000, 17), (33, 4097)]


def close(actual, expected, n, what=""):
    """Equal to the rounding of a float64 sum of n terms: sqrt(n) eps typical, 16 of them allowed.

    Entries are compared relative to the largest of their array: a sum of signed terms may cancel.
    """
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    eps = torch.finfo(torch.float64).eps
    scale = float(expected.abs().nan_to_num(0, 0, 0).max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        actual,
        expected,
        rtol=16 * math.sqrt(max(n, 1)) * eps,
        atol=16 * math.sqrt(max(n, 1)) * eps * scale,
        msg=lambda text: f"{what}: {text}",
    )


def assert_moments(actual, expected):
    """Every array of two RowMoments, counts exactly."""
    n = max(1, int(expected.counts[0]))
    assert actual.counts.tolist() == expected.counts.tolist()
    for name in ("norm_sums", "norm_range", "abs_max"):
        close(getattr(actual, name), getattr(expected, name), n, name)
    for k, name in enumerate(("sum", "unit_sum", "square_sum", "unit_square_sum")):
        close(actual.sums[k], expected.sums[k], n, name)


def spoiled(n, d, dtype):
    """Random rows with an offset, among them a zero, a NaN, an infinite and two equal rows."""
    x = (torch.randn(n, d) + 0.3).to(dtype)
    if n >= 7:
        x[1] = 0
        x[2, d // 2] = math.nan
        x[3, d - 1] = math.inf
        x[5] = x[4]
    return x
