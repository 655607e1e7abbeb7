"""Groups of rows for tests of kernels: the walk, empty outputs, and what they must hold after."""

from __future__ import annotations

import torch
from rows import close

from aniso import reference
from aniso.ops._runs import runs_of

# Rows, columns, groups: one row, one group, more groups than rows, runs and widths off the vectors.
GROUP_SIZES = [(0, 5, 3), (1, 1, 1), (2, 7, 1), (7, 63, 20), (63, 257, 4), (37, 768, 9)]
NAMES = ("counts", "square_norms", "sums", "unit_sums", "products", "totals")


def runs_and_outputs(x, ids, wanted):
    """The walk over rows in a group, and a kernel's six outputs, zero, or None if not wanted."""
    runs = runs_of(ids, None)
    groups = int(ids.max()) + 1 if len(ids) else 0

    def zeros(name, *shape):
        return x.new_zeros(shape, dtype=torch.float64) if name in wanted else None

    d = x.shape[1]
    outputs = (
        torch.zeros(groups, dtype=torch.int64, device=x.device),
        x.new_zeros(groups, dtype=torch.float64),
        zeros("sums", groups, d),
        zeros("unit_sums", groups, d),
        zeros("products", groups, 3),
        x.new_zeros((3, d), dtype=torch.float64) if "products" in wanted else None,
    )
    return runs, outputs


def reference_sums(x, ids, scale=1.0):
    """The six outputs of group 0 … max(ids), by the reference."""
    present, *values = reference.group_moments(x, ids)
    groups = int(ids.max()) + 1 if len(ids) else 0
    counts, sums, unit_sums, square_norms = (
        value.new_zeros((groups, *value.shape[1:])).index_copy(0, present, value)
        for value in values
    )
    mean = sums * scale
    pairs = ((unit_sums, unit_sums), (unit_sums, mean), (mean, mean))
    products = torch.stack([(a * b).sum(1) for a, b in pairs], dim=1)
    return counts, square_norms, sums, unit_sums, products, unit_sums.sum(0)


def assert_sums(actual, expected):
    """Every output that was asked for, counts exactly."""
    assert actual[0].tolist() == expected[0].tolist()
    n = int(expected[0].max()) if len(expected[0]) else 1
    for name, a, e in zip(NAMES[1:], actual[1:], expected[1:], strict=True):
        # Products are sums of d terms, each of sums of n.
        terms = n if name != "products" else 4 * n * expected[2].shape[1]
        if a is not None:
            close(a.sum(0) if name == "totals" else a, e, terms, name)
