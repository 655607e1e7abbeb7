from __future__ import annotations

from sys import modules

import numpy as np
import pytest
import torch
from rows import DTYPES, close, spoiled

import aniso
from aniso import reference
from aniso.ops import cross_gram_into

SIZES = [(0, 5, 3), (1, 1, 1), (2, 7, 1), (7, 63, 5), (63, 257, 40), (1000, 17, 33)]


def pair(n, dx, dy, dtype):
    """Paired rows with spoiled ones at different places: zero, NaN and infinite in either."""
    return spoiled(n, dx, dtype), spoiled(n, dy, dtype).roll(1, dims=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "dx", "dy"), SIZES)
def test_both_products_equal_reference(n, dx, dy, dtype):
    (x, y), mask = pair(n, dx, dy, dtype), torch.rand(n) > 0.3
    for kept in (None, mask):
        raw, unit = (torch.zeros(dx, dy, dtype=torch.float64) for _ in range(2))
        cross_gram_into(x, y, kept, raw, unit)
        close(raw, reference.cross_gram(x, y, kept), n, "raw")
        close(unit, reference.cross_gram(x, y, kept, normalize=True), n, "unit")


def test_blocks_add_up(monkeypatch):
    monkeypatch.setattr(modules["aniso.ops.cross_gram"], "_BLOCK_ELEMENTS", 100)
    x, y, mask = torch.randn(333, 17), torch.randn(333, 8), torch.rand(333) > 0.5
    close(aniso.cross_gram(x, y, mask=mask), reference.cross_gram(x, y, mask), 333)


def test_sources_of_different_dtypes_and_strides():
    x, y = torch.randn(9, 40).T, torch.randn(40, 12).bfloat16()[:, ::2]
    close(aniso.cross_gram(x, y), reference.cross_gram(x, y), 40)


def test_with_itself_it_is_the_gram():
    x = torch.randn(70, 12, dtype=torch.float64)
    for normalize in (False, True):
        found = aniso.cross_gram(x, x, normalize=normalize)
        close(found, aniso.gram(x, normalize=normalize), 70)


@pytest.mark.parametrize("scale", [1e-200, 1e30, 1e200])
def test_directions_at_any_scale(scale):
    x, y = torch.randn(40, 10, dtype=torch.float64), torch.randn(40, 6, dtype=torch.float64)
    found = aniso.cross_gram(x * scale, y / scale, normalize=True)
    close(found, reference.cross_gram(x, y, normalize=True), 40)


def test_a_pair_with_one_zero_row_has_no_direction():
    x, y = torch.ones(2, 3), torch.tensor([[0.0], [2.0]])
    assert aniso.cross_gram(x, y, normalize=True).sum() == pytest.approx(3 / 3**0.5)
    assert aniso.cross_gram(x, y).sum() == 6


def test_numpy_in_numpy_out():
    x, y = np.random.default_rng(0).standard_normal((2, 20, 5))
    result = aniso.cross_gram(x, y)
    assert isinstance(result, np.ndarray)
    np.testing.assert_allclose(result, x.T @ y, rtol=1e-12)


def test_bad_input():
    x, y = torch.randn(9, 4), torch.randn(9, 3)
    y[6, 1] = torch.inf
    with pytest.raises(aniso.InputError, match=r"y has 1 rows with NaN .* the first is row 6"):
        aniso.cross_gram(x, y)
    mask = torch.arange(9) != 6
    close(aniso.cross_gram(x, y, mask=mask), reference.cross_gram(x, y, mask), 9)
    with pytest.raises(aniso.InputError, match="x has 9 rows, y has 8; paired rows"):
        aniso.cross_gram(x, y[:8])
    with pytest.raises(aniso.InputError, match=r"y has shape \[9\]; rows are"):
        aniso.cross_gram(x, y[:, 0])
    with pytest.raises(aniso.InputError, match="y has dtype int64"):
        aniso.cross_gram(x, y[:, :1].nan_to_num(0, 0, 0).long())
    with pytest.raises(aniso.InputError, match=r"it must be bool \[9\]"):
        aniso.cross_gram(x, y, mask=mask[:8])
    with pytest.raises(aniso.InputError, match="x lies on cpu, y on meta"):
        aniso.cross_gram(x, y.to("meta"))


def test_opcheck_and_compile():
    x, y, raw = torch.randn(20, 6), torch.randn(20, 4), torch.zeros(6, 4, dtype=torch.float64)
    mask = torch.rand(20) > 0.5
    for arguments in ((x, y, mask, raw, torch.zeros_like(raw)), (x, y, None, None, raw)):
        torch.library.opcheck(cross_gram_into, arguments)

    total = torch.zeros(6, 4, dtype=torch.float64)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def layer(rows, others):
        torch.ops.aniso.cross_gram(rows, others, None, total, None)
        return rows + 1

    layer(x, y)
    close(total, reference.cross_gram(x, y), 20)


def test_select_backend_knows_it():
    assert aniso.select_backend("cross_gram", torch.zeros(1, 1)).name == "torch"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_equals_reference(dtype):
    (x, y), mask = pair(1000, 257, 63, dtype), torch.rand(1000) > 0.3
    raw, unit = (torch.zeros(257, 63, dtype=torch.float64, device="cuda") for _ in range(2))
    cross_gram_into(x.cuda(), y.cuda(), mask.cuda(), raw, unit)
    close(raw.cpu(), reference.cross_gram(x, y, mask), 1000)
    close(unit.cpu(), reference.cross_gram(x, y, mask, normalize=True), 1000)
