"""Sizes that only large inputs reach: element offsets beyond 2³¹, memory beside the input."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from rows import close

import aniso
from aniso import reference

_PEAK = """
import resource
import torch
import aniso

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

aniso.cosine_histogram(torch.randn(300, 768), bins=2048)
x = torch.randn(20000, 768).add_(0.3)
before = peak()
assert aniso.cosine_histogram(x, bins=2048).pairs == 20000 * 19999 // 2
print((peak() - before) / 1024)
"""


def test_cosine_histogram_takes_little_memory_beside_the_rows():
    """61 MB of rows, 1.6 GB of cosines: at most 100 MB more than the rows."""
    command = [sys.executable, "-P", "-c", _PEAK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 100


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return (torch.randn(1000, 768) + 0.3).bfloat16()


@pytest.fixture(scope="module")
def repeated(base):
    """2.9e6 rows, more than 2³¹ numbers: `base` over and over, doubled the last time."""
    rows = base.repeat(2900, 1)
    assert rows.numel() > 2**31
    rows[-1000:] *= 2
    return rows


@pytest.mark.slow
def test_gram_beyond_32_bits(base, repeated):
    close(aniso.gram(repeated), 2903 * reference.gram(base), 1, "raw", 2.0**-20)
    unit = reference.gram(base, normalize=True)
    close(aniso.gram(repeated, normalize=True), 2900 * unit, 1, "unit", 2.0**-20)


@pytest.mark.slow
def test_row_moments_beyond_32_bits(base, repeated):
    found, part = aniso.row_moments(repeated), reference.row_moments(base)
    assert found.counts.tolist() == [2_900_000, 0, 0, 0]
    for k, factor in enumerate((2901, 2900, 2903, 2900)):
        close(found.sums[k], factor * part.sums[k], 1, str(k), 2.0**-20)
    close(found.norm_sums[:2], part.norm_sums[:2] * torch.tensor([2901, 2903]), 1, "", 2.0**-20)


@pytest.mark.slow
def test_cosine_stats_beyond_32_bits(base, repeated):
    """Of all ordered pairs, N are of a row with itself; the others' mean and variance follow."""
    units, n = reference.directions(base.double()), len(repeated)
    cosines = units @ units.T
    mean = (n * float(cosines.mean()) - 1) / (n - 1)
    square = (n * float(cosines.square().mean()) - 1) / (n - 1)
    stats = aniso.cosine_stats(repeated)
    assert stats.mean == pytest.approx(mean, rel=1e-7)
    assert stats.var == pytest.approx(square - mean * mean, rel=1e-6)
