"""Rows that are hard in one way each, and tolerances with their argument."""

from __future__ import annotations

import math

import torch

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SIZES = [(0, 5), (1, 1), (2, 7), (7, 63), (63, 257), (257, 768), (1000, 17), (33, 4097)]
SIZES.append((600, 1100))  # wide, and beyond one span of float32 sums


def close(actual, expected, n, what="", tolerance=None):
    """Equal to `tolerance`: by default the rounding of a float64 sum of n terms, 16 sqrt(n) eps.

    Entries are compared relative to the largest of their array: a sum of signed terms may cancel.
    """
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    if tolerance is None:
        tolerance = 16 * math.sqrt(max(n, 1)) * torch.finfo(torch.float64).eps
    scale = float(expected.abs().nan_to_num(0, 0, 0).max()) if expected.numel() else 0.0
    torch.testing.assert_close(
        actual,
        expected,
        rtol=tolerance,
        atol=tolerance * scale,
        msg=lambda text: f"{what}: {text}",
    )


# On the CPU, up to 128 rows of half precision meet in float32, and so do Σx̂_k² of float32: sums
# carry 128 roundings of 2⁻²⁵, which add up as their root (3 of that allowed). Squared norms of half
# precision lose what sums of four squares round away, up to 2⁻²²: norms half of it, Σ‖x‖⁴ twice.
SPAN_SUMS, HALF_NORMS = 2.0**-20, 2.0**-23


def assert_moments(actual, expected, dtype=torch.float32):
    """Every array of two RowMoments, counts exactly.

    `dtype`: of the rows when a CPU kernel ran; other kernels are as exact as it is for float64.
    """
    n = max(1, int(expected.counts[0]))
    half = dtype in (torch.float16, torch.bfloat16)
    assert actual.counts.tolist() == expected.counts.tolist()
    close(actual.abs_max, expected.abs_max, n, "abs_max")
    close(actual.norm_range, expected.norm_range, n, "norm_range", HALF_NORMS if half else None)
    for k, power in enumerate((1, 2, 4)):
        values = actual.norm_sums[k], expected.norm_sums[k]
        close(*values, n, f"norms^{power}", power * HALF_NORMS if half else None)
    for k, name in enumerate(("sum", "unit_sum", "square_sum", "unit_square_sum")):
        in_float32 = half or (dtype == torch.float32 and name == "unit_square_sum")
        close(actual.sums[k], expected.sums[k], n, name, SPAN_SUMS if in_float32 else None)


def about_origin(state):
    """The sums of a LayerState by name, second moments not about the pilot of its first rows."""
    moments = state.moments
    origin = torch.zeros_like(state.grams.pilot)
    grams = state.grams.about(origin, (moments.rows, moments.directions))
    return vars(moments) | {f"gram_{name}": tensor for name, tensor in vars(grams).items()}


def spoiled(n, d, dtype):
    """Random rows with an offset, among them a zero, a NaN, an infinite and two equal rows."""
    x = (torch.randn(n, d) + 0.3).to(dtype)
    if n >= 7:
        x[1] = 0
        x[2, d // 2] = math.nan
        x[3, d - 1] = math.inf
        x[5] = x[4]
    return x
