from __future__ import annotations

import numpy as np
import pytest
import torch
from rows import DTYPES, SIZES, close, spoiled

import aniso
from aniso import reference
from aniso.ops import gram_into


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), SIZES[:-1])
def test_both_grams_equal_reference(n, d, dtype):
    x, mask = spoiled(n, d, dtype), torch.rand(n) > 0.3
    raw, unit = (torch.zeros(d, d, dtype=torch.float64) for _ in range(2))
    gram_into(x, mask, raw, unit)
    close(raw, reference.gram(x, mask), n, "raw")
    close(unit, reference.gram(x, mask, normalize=True), n, "unit")


def test_blocks_add_up(monkeypatch):
    from sys import modules

    monkeypatch.setattr(modules["aniso.ops.gram"], "_BLOCK_ELEMENTS", 100)
    x = torch.randn(333, 17)
    close(aniso.gram(x), reference.gram(x), 333)


def test_centred_is_the_scatter_about_the_mean():
    x = torch.randn(400, 30, dtype=torch.float64) + 5
    centred = x - x.mean(0)
    close(aniso.gram(x, center=True), centred.T @ centred, 400 * 400)
    units = reference.directions(x)
    about = units - units.mean(0)
    close(aniso.gram(x, normalize=True, center=True), about.T @ about, 400 * 400)


@pytest.mark.parametrize("scale", [1e-200, 1e30, 1e200])
def test_directions_at_any_scale(scale):
    x = torch.randn(40, 10, dtype=torch.float64)
    close(aniso.gram(x * scale, normalize=True), reference.gram(x, normalize=True), 40)


def test_raises_on_a_row_that_is_not_finite():
    x = torch.randn(9, 4)
    x[6, 1] = torch.nan
    with pytest.raises(aniso.InputError, match="the first is row 6"):
        aniso.gram(x)
    mask = torch.arange(9) != 6
    close(aniso.gram(x, mask=mask), reference.gram(x, mask), 9)


def test_numpy_in_numpy_out():
    x = np.random.default_rng(0).standard_normal((20, 5))
    result = aniso.gram(x)
    assert isinstance(result, np.ndarray)
    np.testing.assert_allclose(result, x.T @ x, rtol=1e-13)


def test_opcheck_and_compile():
    x, raw = torch.randn(20, 6), torch.zeros(6, 6, dtype=torch.float64)
    for arguments in ((x, None, raw, torch.zeros_like(raw)), (x, None, raw, None)):
        torch.library.opcheck(gram_into, arguments)

    total = torch.zeros(6, 6, dtype=torch.float64)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def layer(rows):
        torch.ops.aniso.gram(rows, None, total, None)
        return rows + 1

    layer(x)
    close(total, reference.gram(x), 20)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_equals_reference(dtype):
    x, mask = spoiled(1000, 257, dtype), torch.rand(1000) > 0.3
    close(
        aniso.gram(x[4:].cuda(), mask=mask[4:].cuda()).cpu(), reference.gram(x[4:], mask[4:]), 1000
    )
