from __future__ import annotations

import math
from importlib import import_module

import numpy as np
import pytest
import torch
from rows import DTYPES, SIZES, close, spoiled

import aniso
from aniso import _native, reference
from aniso.moments import Grams
from aniso.ops import gram_into
from aniso.ops.gram import pilot_of

plain = import_module("aniso.ops.gram")

# Rounding to 39 (float32) or 23 bits (float16) of a column's largest value, on one or both sides,
# and products of digits beyond the last: a few units of the last bit of few rows at worst. bfloat16
# rows are multiplied by numbers of two parts: 2⁻¹⁷ at worst, on one side.
TOLERANCE = {torch.float32: 2.0**-36, torch.float16: 2.0**-21, torch.bfloat16: 2.0**-17}


def grams(x, mask=None, pilot=0.0):
    sums = Grams.zeros(x.shape[1])
    sums.pilot[:] = pilot
    gram_into(x, mask, *sums.tensors())
    return sums


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), [*SIZES, (2100, 70)])
def test_both_grams_equal_reference(n, d, dtype):
    x, mask = spoiled(n, d, dtype), torch.rand(n) > 0.3
    sums, moments = grams(x, mask), reference.row_moments(x, mask)
    tolerance = TOLERANCE.get(dtype)
    close(sums.raw, reference.gram(x, mask), n, "raw", tolerance)
    close(sums.unit, reference.gram(x, mask, normalize=True), n, "unit", tolerance)
    close(sums.totals, torch.stack([moments.sum, moments.unit_sum]), n, "totals", tolerance)
    assert torch.equal(sums.raw, sums.raw.T) and torch.equal(sums.unit, sums.unit.T)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_digits_are_as_fine_as_they_say(dtype):
    """The error of G is XᵀΔ + ΔᵀX with ‖Δ‖_F² as stated, and of random sign: nothing adds up."""
    x = (torch.randn(4000, 48) + 0.3).to(dtype)
    sums = grams(x)
    if not _native.has_amx:
        assert sums.noise.tolist() == [0.0, 0.0]
        return
    error = sums.unit - reference.gram(x, normalize=True)
    allowed = 2 * math.sqrt(sums.noise[1]) * torch.linalg.matrix_norm(sums.unit, 2).sqrt()
    assert 0 < torch.linalg.matrix_norm(error, 2) < allowed
    assert error.mean().abs() < 0.1 * allowed / 48


@pytest.mark.parametrize("lengths", [(1.0,), (1.0, 1.001), (1.0, 2.0), (1.0, 1.7, 2.9)], ids=str)
def test_rows_of_few_norms_do_not_all_err_alike(lengths):
    """What is rounded in one of these rows is rounded in thousands."""
    n, d = 3000, 768
    x = torch.where(torch.rand(n, d) < 0.85, 1.0, -1.0)
    if lengths == (1.0, 1.001):
        x[:, 0] *= torch.where(torch.rand(n) < 0.5, 1.0, 1.25)
    else:
        x *= torch.tensor(lengths)[torch.randint(0, len(lengths), (n, 1))]
    x = x.bfloat16()
    pilot = pilot_of(x, None)
    sums, units = grams(x, None, pilot), reference.directions(x.double())
    about = units - pilot[1]
    error = sums.unit - about.T @ about
    if sums.noise[1]:
        allowed = 2 * math.sqrt(sums.noise[1]) * torch.linalg.matrix_norm(about.T @ about, 2).sqrt()
        assert torch.linalg.matrix_norm(error, 2) < allowed
    close(sums.totals[1], about.sum(0), 1, "totals", 1e-9 * n)
    exact = float(reference.pair_cosines(x).var(unbiased=False))
    assert aniso.cosine_stats(x).var == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e30])
def test_float32_far_from_one(scale):
    x = torch.randn(300, 40) * scale
    x[::2] *= torch.logspace(-6, 0, 40)
    sums = grams(x)
    close(sums.raw, reference.gram(x), 300, tolerance=TOLERANCE[torch.float32])
    close(sums.unit, reference.gram(x, normalize=True), 300, tolerance=TOLERANCE[torch.float32])


def test_columns_of_very_different_size_are_each_as_good():
    x = torch.randn(500, 60) * torch.logspace(-18, 18, 60)
    raw, exact = grams(x).raw, reference.gram(x)
    size = exact.diagonal().sqrt()
    close(raw / size / size[:, None], exact / size / size[:, None], 500, "", 2.0**-36)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_about_a_pilot_and_moved_back(dtype):
    x, mask = spoiled(500, 30, dtype), torch.rand(500) > 0.2
    moments = reference.row_moments(x, mask)
    sums = grams(x, mask, pilot_of(x, mask))
    back = sums.about(torch.zeros_like(sums.pilot), (moments.rows, moments.directions))
    tolerance = TOLERANCE.get(dtype)
    close(back.raw, reference.gram(x, mask), 500, "raw", tolerance)
    close(back.unit, reference.gram(x, mask, normalize=True), 500, "unit", tolerance)
    close(back.totals, torch.stack([moments.sum, moments.unit_sum]), 500, "totals", tolerance)


@pytest.mark.parametrize("spread", [1.0, 0.3, 0.003])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-9), (torch.float64, 1e-9)])
def test_variance_of_cosines_that_hardly_vary(spread, dtype, tolerance):
    """Mean cosines of 0.5, 0.9 and 0.99999: the variance falls to 1e-12."""
    x = (torch.randn(1, 256) + spread * torch.randn(900, 256)).to(dtype)
    exact = float(reference.pair_cosines(x).var(unbiased=False))
    assert aniso.cosine_stats(x).var == pytest.approx(exact, rel=tolerance)


@pytest.mark.parametrize("sizes", [0.0, 0.5])
@pytest.mark.parametrize("spread", [1.0, 0.3, 0.003])
def test_variance_of_cosines_of_bfloat16_rows(spread, sizes):
    """Mean cosines of 0.5, 0.9 and 0.99999, of rows of one norm and of several."""
    x = torch.randn(1, 256) + spread * torch.randn(900, 256)
    x = (x * torch.exp(sizes * torch.randn(900, 1))).bfloat16()
    exact = float(reference.pair_cosines(x.double()).var(unbiased=False))
    assert aniso.cosine_stats(x).var == pytest.approx(exact, rel=1e-5 if spread > 0.1 else 1e-3)


def test_bfloat16_rows_leave_their_pilot_on_the_way():
    """Rows alike, then some that are not: no difference from the pilot is exact any more."""
    x = torch.cat([10 + torch.randn(700, 40), torch.randn(900, 40), 10 + torch.randn(500, 40)])
    x = x.bfloat16()
    sums, moments = grams(x, None, pilot_of(x[:700], None)), reference.row_moments(x)
    back = sums.about(torch.zeros_like(sums.pilot), (moments.rows, moments.directions))
    close(back.raw, reference.gram(x), 1, "raw", TOLERANCE[torch.bfloat16])
    close(back.unit, reference.gram(x, normalize=True), 1, "unit", TOLERANCE[torch.bfloat16])


def test_bfloat16_norms_too_far_apart_for_one_product():
    x = torch.randn(1500, 50) * torch.logspace(-25, 15, 1500)[:, None]
    x = x.bfloat16()
    sums = grams(x)
    close(sums.raw, reference.gram(x), 1, "raw", TOLERANCE[torch.bfloat16])
    close(sums.unit, reference.gram(x, normalize=True), 1, "unit", TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_threads_give_the_same_bits(dtype, monkeypatch):
    x = torch.randn(1500, 200).to(dtype)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(grams(x))
    for result in results[1:]:
        pairs = zip(results[0].tensors(), result.tensors(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strided_rows_and_masks(dtype):
    wide = spoiled(100, 90, dtype)
    for x in (wide[:, 10:73], wide[::3], wide.T, wide[:, ::2]):
        mask = torch.rand(2 * x.shape[0])[::2] > 0.5
        expected = reference.gram(x, mask)
        close(grams(x, mask).raw, expected, len(x), tolerance=TOLERANCE.get(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_plain_path_equals_reference(dtype, monkeypatch):
    """What runs on a device without a kernel."""
    monkeypatch.setattr(plain, "_choose", lambda _: aniso.Backend("torch", "as asked"))
    monkeypatch.setattr(plain, "_BLOCK_ELEMENTS", 100)
    assert_float64_grams(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa, dtype, monkeypatch):
    name, known = f"cpu-{isa}", ("baseline", "avx2", "avx512")
    monkeypatch.setattr(plain, "_choose", lambda _: aniso.Backend(name, "as asked"))
    if known.index(isa) > known.index(_native.isa):
        with pytest.raises(ValueError, match=isa):
            grams(torch.randn(3, 3).to(dtype))
        return
    assert_float64_grams(dtype)


def assert_float64_grams(dtype):
    x, mask = spoiled(700, 57, dtype), torch.rand(700) > 0.3
    sums, moments = grams(x, mask), reference.row_moments(x, mask)
    close(sums.raw, reference.gram(x, mask), 700, "raw")
    close(sums.unit, reference.gram(x, mask, normalize=True), 700, "unit")
    close(sums.totals, torch.stack([moments.sum, moments.unit_sum]), 700, "totals")
    assert torch.equal(sums.raw, sums.raw.T) and torch.equal(sums.unit, sums.unit.T)
    pilot = torch.randn(2, 57, dtype=torch.float64).float().double()
    about = grams(x, mask, pilot)
    counts = (moments.rows, moments.directions)
    close(about.about(torch.zeros_like(pilot), counts).raw, sums.raw, 700 * 57, "about a pilot")


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
    close(aniso.gram(x, mask=mask), reference.gram(x, mask), 9, "", TOLERANCE[torch.float32])


def test_numpy_in_numpy_out():
    x = np.random.default_rng(0).standard_normal((20, 5))
    result = aniso.gram(x)
    assert isinstance(result, np.ndarray)
    np.testing.assert_allclose(result, x.T @ x, rtol=1e-13)


def test_opcheck_and_compile():
    x, sums = torch.randn(20, 6), Grams.zeros(6)
    for unit in (sums.unit, None):
        rest = (unit, sums.totals, sums.noise)
        torch.library.opcheck(gram_into, (x, None, sums.pilot, sums.raw, *rest))

    total = Grams.zeros(6)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def layer(rows):
        torch.ops.aniso.gram(rows, None, *total.tensors())
        return rows + 1

    layer(x)
    close(total.raw, reference.gram(x), 20, tolerance=TOLERANCE[torch.float32])


@pytest.mark.gpu
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_equals_cpu(dtype, center, normalize):
    """The function on a GPU; the op itself is tested with its kernels (test_triton_ops.py)."""
    x, mask = (torch.randn(1000, 257) + 0.3).to(dtype), torch.rand(1000) > 0.3
    found = aniso.gram(x.cuda(), mask=mask.cuda(), center=center, normalize=normalize).cpu()
    exact = aniso.gram(x.double(), mask=mask, center=center, normalize=normalize)
    close(found, exact, 1000, "", 2.0**-18 if dtype.itemsize == 2 else None)
