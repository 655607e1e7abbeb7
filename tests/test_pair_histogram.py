from __future__ import annotations

import math
from importlib import import_module

import numpy as np
import pytest
import torch
from rows import DTYPES, spoiled

import aniso
from aniso import reference
from aniso.ops import pair_histogram_into

plain = import_module("aniso.ops.pair_histogram")
ISAS = ("baseline", "avx2", "avx512")

# Every cosine is within this of float64; pairs that close to an edge may lie on its other side.
ERROR = 2e-6


def count(a, b=None, bins=2048, low=-1.0, high=1.0):
    counts = torch.zeros(bins + 2, dtype=torch.int64)
    extremes = torch.tensor([torch.inf, -torch.inf], dtype=torch.float64)
    pair_histogram_into(a, b, low, high, counts, extremes)
    return counts, extremes


def assert_counts(counts, extremes, cosines, low=-1.0, high=1.0):
    """Cumulated counts lie between those of float64 cosines moved up and down by ERROR."""
    bins = len(counts) - 2
    assert int(counts.sum()) == len(cosines)
    ordered = cosines.clamp(-1, 1).sort().values
    edges = low + (high - low) / bins * torch.arange(bins, dtype=torch.float64)
    below = counts[: bins + 1].cumsum(0)[:bins]
    assert (below >= torch.searchsorted(ordered, edges - ERROR)).all()
    assert (below <= torch.searchsorted(ordered, edges + ERROR)).all()
    above = int(counts[-1])
    assert (ordered > high + ERROR).sum() <= above <= (ordered > high - ERROR).sum()
    if len(cosines):
        assert abs(float(extremes[0] - ordered[0])) < ERROR
        assert abs(float(extremes[1] - ordered[-1])) < ERROR


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "d"), [(0, 5), (1, 1), (2, 7), (3, 1), (33, 64), (63, 257), (257, 768), (700, 17)]
)
def test_one_source_equals_reference(n, d, dtype):
    x = (torch.randn(n, d) + 0.3).to(dtype)
    cosines = reference.pair_cosines(x)
    for bins, low, high in (
        (2048, -1.0, 1.0),
        (1, -1.0, 1.0),
        (77, -0.05, 0.3),
        (65536, -1.0, 1.0),
    ):
        assert_counts(*count(x, None, bins, low, high), cosines, low, high)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (5, 40, 7), (300, 70, 130), (70, 300, 768)])
def test_two_sources_equal_reference(n, m, d, dtype):
    x, y = (torch.randn(n, d) + 0.3).to(dtype), torch.randn(m, d).to(dtype)
    assert_counts(*count(x, y), reference.pair_cosines(x, y))


# Rows so wide that a chunk of them is some hundred, and a block of partners 32: beyond the width
# that AMX takes.
WIDE = 43_000


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), [(600, 32_768), (450, WIDE)])
def test_more_rows_than_a_block_and_a_chunk(n, d, dtype):
    x = (torch.randn(n, d) + 0.1).to(dtype)
    assert_counts(*count(x), reference.pair_cosines(x))
    y = torch.randn(70, d).to(dtype)
    assert_counts(*count(x, y), reference.pair_cosines(x, y))


def test_plain_path_equals_reference(monkeypatch):
    """What runs on a device without a kernel."""
    monkeypatch.setattr(plain, "_choose", lambda _: aniso.Backend("torch", "as asked"))
    monkeypatch.setattr(plain, "_TILE", 50)
    x, y = torch.randn(173, 40) + 0.2, torch.randn(60, 40)
    assert_counts(*count(x), reference.pair_cosines(x))
    assert_counts(*count(x, y, 50, -0.1, 0.2), reference.pair_cosines(x, y), -0.1, 0.2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa, dtype, monkeypatch):
    name = f"cpu-{isa}"
    monkeypatch.setattr(plain, "_choose", lambda _: aniso.Backend(name, "as asked"))
    x, y = (torch.randn(173, 83) + 0.2).to(dtype), torch.randn(61, 83).to(dtype)
    if ISAS.index(isa) > ISAS.index(aniso._native.isa):
        with pytest.raises(ValueError, match=isa):
            count(x)
        return
    assert_counts(*count(x), reference.pair_cosines(x))
    assert_counts(*count(x, y, 50, -0.1, 0.2), reference.pair_cosines(x, y), -0.1, 0.2)
    wide = (torch.randn(230, WIDE) + 0.1).to(dtype)
    assert_counts(*count(wide), reference.pair_cosines(wide))


def test_rows_too_wide_for_the_matrix_unit():
    x = torch.randn(20, aniso._native.pair_histogram_max_dim + 1)
    assert aniso.select_backend("pair_histogram", x).name == f"cpu-{aniso._native.isa}"
    assert_counts(*count(x), reference.pair_cosines(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cosines_of_one_and_minus_one_lie_in_the_outer_bins(dtype):
    x = torch.tensor([[1.0, 2.0, -3.0]]).to(dtype).repeat(40, 1)
    x[::2] *= -2
    counts, extremes = count(x, bins=8)
    assert counts.tolist() == [0, 400, 0, 0, 0, 0, 0, 0, 380, 0]
    assert extremes.tolist() == pytest.approx([-1, 1], abs=ERROR)
    assert extremes[0] >= -1 and extremes[1] <= 1


HARD_DIGITS = {
    "one value": lambda n, d: torch.full((n, d), 1 / 3) * (1 + torch.arange(n)[:, None]),
    "two values": lambda n, d: torch.where(torch.rand(n, d) < 0.5, 1 / 3, -0.7),
    "two values, one large": lambda n, d: torch.where(torch.rand(n, d) < 0.02, 4.0, 0.996),
    "small whole numbers": lambda n, d: torch.randint(1, 8, (n, d)).float(),
    "bytes": lambda n, d: torch.randint(-127, 128, (n, d)).float(),
    "powers of two": lambda n, d: 2.0 ** torch.randint(-12, 3, (n, d)),
    "one huge number": lambda n, d: torch.randn(n, d).index_fill(1, torch.tensor([d // 2]), 200.0),
    "equal numbers, some one large": lambda n, d: torch.where(
        (torch.arange(n)[:, None] % 2 == 0) & (torch.arange(d) == d // 2), 200.0, 0.37
    ),
    "one number": lambda n, d: torch.eye(d)[:n] + 1e-3 * torch.randn(n, d),
    "close to one another": lambda n, d: torch.randn(1, d) + 1e-3 * torch.randn(n, d),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [5, 768, 5000])
@pytest.mark.parametrize("kind", HARD_DIGITS)
def test_every_cosine_is_within_1e_6(kind, d, dtype):
    """Pair by pair, of rows whose digits do not average out: the extremes of one pair are it."""
    n = min(d, 5)
    x = HARD_DIGITS[kind](n, d).to(dtype)
    units = reference.directions(x.double())
    worst = 0.0
    for i in range(n):
        for j in range(i):
            _, extremes = count(x[[i, j]], bins=4)
            exact = float((units[i] @ units[j]).clamp(-1, 1))
            worst = max(worst, float((extremes - exact).abs().max()))
    assert worst < 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_narrow_distribution(dtype):
    """All cosines in [0.999, 1]: two bins of 2048, or many of a range of their own."""
    x = (torch.randn(1, 300) + 0.02 * torch.randn(500, 300)).to(dtype)
    cosines = reference.pair_cosines(x)
    assert float(cosines.min()) > 0.999
    assert_counts(*count(x), cosines)
    assert_counts(*count(x, None, 2048, 0.999, 1.0), cosines, 0.999, 1.0)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_any_scale(dtype, scale):
    x = (torch.randn(90, 33) + 0.5).to(dtype)
    scales = torch.where(torch.arange(90) % 2 == 0, scale, 1.0)[:, None]
    assert_counts(*count((x * scales).to(dtype)), reference.pair_cosines((x * scales).to(dtype)))


def test_float16_squares_beyond_its_range():
    x = torch.full((20, 40), 6e4, dtype=torch.float16)
    x[0, ::2] = -6e4
    counts, _ = count(x, bins=4)
    assert counts.tolist() == [0, 0, 0, 19, 171, 0]


def test_adds_to_what_is_there():
    x = torch.randn(40, 9)
    counts, extremes = count(x)
    doubled = counts.clone()
    pair_histogram_into(x, None, -1.0, 1.0, doubled, extremes)
    assert torch.equal(doubled, 2 * counts)


def test_strided_rows():
    wide = torch.randn(60, 100)
    for x in (wide[:, 10:73], wide[::3], wide.T, wide[:, ::2]):
        assert torch.equal(count(x)[0], count(x.contiguous())[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), [(500, 30), (1500, 1100)])
def test_threads_give_the_same_counts(n, d, dtype, monkeypatch):
    x = torch.randn(n, d).to(dtype)
    expected = count(x)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert all(torch.equal(a, b) for a, b in zip(count(x), expected, strict=True))


def test_opcheck_and_compile():
    x, counts = torch.randn(20, 6), torch.zeros(10, dtype=torch.int64)
    extremes = torch.tensor([torch.inf, -torch.inf], dtype=torch.float64)
    torch.library.opcheck(pair_histogram_into, (x, None, -1.0, 1.0, counts, extremes))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def layer(rows):
        torch.ops.aniso.pair_histogram(rows, None, -1.0, 1.0, counts, extremes)
        return rows + 1

    layer(x)
    assert int(counts.sum()) == 190


def test_histogram_leaves_out_what_has_no_direction():
    x, mask = torch.randn(50, 8), torch.ones(50, dtype=torch.bool)
    x[3] = 0
    x[7] = torch.nan
    mask[7] = False
    result = aniso.cosine_histogram(x, mask=mask, bins=100)
    assert (result.rows, result.zero_rows, result.pairs, result.exact) == (
        48,
        1,
        48 * 47 // 2,
        True,
    )
    kept = torch.arange(50) != 7
    cosines = reference.pair_cosines(x[kept])
    assert result.min == pytest.approx(float(cosines.min()), abs=ERROR)
    assert result.max == pytest.approx(float(cosines.max()), abs=ERROR)
    with pytest.raises(aniso.InputError, match="the first is row 7"):
        aniso.cosine_histogram(x)


def test_numpy_in_numpy_out_without_pairs():
    result = aniso.cosine_histogram(np.zeros((3, 4), np.float32))
    assert isinstance(result.counts, np.ndarray) and isinstance(result.edges, np.ndarray)
    assert result.pairs == 0 and math.isnan(result.min) and math.isnan(result.quantile(0.5))


@pytest.mark.parametrize("q", [0.0, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("spread", [1.0, 0.01])
def test_quantiles_are_exact(q, spread):
    x = torch.randn(1, 40) + spread * torch.randn(300, 40)
    cosines = reference.pair_cosines(x).sort().values
    exact = float(cosines[max(0, math.ceil(q * len(cosines)) - 1)])
    histogram = aniso.cosine_histogram(x)
    low, high = histogram.interval(q)
    assert low - ERROR <= exact <= high + ERROR and high - low <= 2 / 2048 + 1e-12
    assert low - ERROR <= histogram.quantile(q) <= high + ERROR
    assert aniso.cosine_quantile(x, q) == pytest.approx(exact, abs=ERROR)


def test_a_sample_says_so_and_its_intervals_hold():
    x = torch.randn(3000, 16) + 0.5
    cosines = reference.pair_cosines(x)
    result = aniso.cosine_histogram(x, max_pairs=100_000, seed=3)
    assert not result.exact and result.pairs <= 100_000 < result.pairs + result.sampled_rows
    for q in (0.01, 0.5, 0.99):
        low, high = result.interval(q)
        assert low < float(cosines.quantile(q) if len(cosines) < 1 << 24 else 0) < high
        assert high - low > 0.002
    again = aniso.cosine_histogram(x, max_pairs=100_000, seed=3)
    assert torch.equal(again.counts, result.counts)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bins": 0}, "bins is 0"),
        ({"bins": 70000}, "bins is 70000"),
        ({"max_pairs": 0}, "max_pairs is 0"),
        ({"other": torch.zeros(2, 3)}, "other has 3 columns, x has 4"),
        ({"other": torch.ones(2, 4), "max_pairs": 5}, "leave it out with other"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words):
    with pytest.raises(aniso.InputError) as caught:
        aniso.cosine_histogram(torch.ones(3, 4), **arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_bad_quantile_is_one_sentence():
    x = torch.ones(3, 4)
    with pytest.raises(aniso.InputError, match=r"q is 1\.5"):
        aniso.cosine_quantile(x, 1.5)
    with pytest.raises(aniso.InputError, match=r"q is -1"):
        aniso.cosine_histogram(x).quantile(-1)
    with pytest.raises(aniso.InputError, match="tolerance is 1e-09"):
        aniso.cosine_quantile(x, 0.5, tolerance=1e-9)


def test_rows_of_a_dump_may_be_spoiled_but_not_here():
    with pytest.raises(aniso.InputError, match="NaN or infinite"):
        aniso.cosine_histogram(spoiled(20, 5, torch.float32))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_equals_reference(dtype):
    x = (torch.randn(3000, 257) + 0.3).to(dtype)
    result = aniso.cosine_histogram(x.cuda(), bins=512)
    counts = torch.cat([torch.zeros(1), result.counts.cpu(), torch.zeros(1)]).long()
    assert_counts(counts, torch.tensor([result.min, result.max]), reference.pair_cosines(x))
