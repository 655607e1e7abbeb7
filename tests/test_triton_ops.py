"""The ops gram and pair_histogram on their Triton kernels: in the interpreter, and on a GPU."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch
from aniso.triton_kernels import tiles
from interpreter import interpreted
from rows import DTYPES, spoiled

import aniso
from aniso import reference
from aniso.moments import Grams
from aniso.ops import backend, gram_into, pair_histogram_into
from aniso.ops._arrays import DTYPES as ROW_DTYPES

gram_op = import_module("aniso.ops.gram")
CODE = """
from importlib import import_module
import aniso
from aniso.ops import gram_into, pair_histogram_into

for name in ("gram", "pair_histogram"):
    import_module("aniso.ops." + name)._choose = lambda x: aniso.Backend("triton", "as asked")
import_module("aniso.ops.gram")._GPU_BLOCK_ELEMENTS = 9000  # several blocks
import_module("aniso.triton_kernels.pair_histogram").PAIR_MACRO_ROWS = 256
for op, *rest in arguments.values():
    (gram_into if op == "gram" else pair_histogram_into)(*rest)
"""
# Relative to the sum of magnitudes: what one sum of products in float32 on tensor cores may lose,
# with the rounding of its factors; and float64 sums.
HALF, DOUBLE = 2.0**-19, 2.0**-46
ERROR = 2e-6  # of a cosine


def gram_case(x, *, masked=True, about=True):
    """Arguments of gram_into: x, mask and accumulators about a pilot or the origin."""
    sums = Grams.zeros(x.shape[1])
    if about:
        sums.pilot.copy_(0.1 * torch.randn(2, x.shape[1]))
    mask = torch.rand(len(x)) > 0.3 if masked else None
    return "gram", x, mask, *sums.tensors()


def pairs_case(a, b=None, bins=300, low=-1.0, high=1.0):
    """Arguments of pair_histogram_into, counters at zero."""
    extremes = torch.tensor([math.inf, -math.inf], dtype=torch.float64)
    return "pairs", a, b, low, high, torch.zeros(bins + 2, dtype=torch.int64), extremes


def sink(n, d, dtype):
    """Rows of which one is far larger than all others."""
    x = torch.randn(n, d)
    x[n // 2] *= 1e4
    return x.to(dtype)


def gram_cases():
    torch.manual_seed(0)
    cases = {}
    for dtype in DTYPES:
        for n, d in ((0, 5), (1, 1), (2, 7), (63, 257), (150, 70)):
            for about in (False, True):
                x = spoiled(n, d, dtype)
                cases[f"{dtype} {n}x{d} about={about}"] = gram_case(x, about=about)
        x = torch.randn(40, 9).to(dtype)
        cases[f"{dtype} no mask"] = gram_case(x, masked=False, about=False)
        cases[f"{dtype} strided"] = gram_case(spoiled(200, 90, dtype)[::2, 3:44], about=False)
        cases[f"{dtype} turned"] = gram_case(spoiled(31, 60, dtype).T)
        cases[f"{dtype} zeros"] = gram_case(torch.zeros(9, 4, dtype=dtype), about=False)
        cases[f"{dtype} sink"] = gram_case(sink(50, 12, dtype))
    for scale in (1e-30, 1e30):
        for dtype in (torch.bfloat16, torch.float32):
            x = (torch.randn(60, 20) * scale).to(dtype)
            cases[f"{dtype} {scale}"] = gram_case(x, about=False)
    cases["float16 beyond its squares"] = gram_case(torch.full((9, 33), 6e4).half(), about=False)
    return cases


def pair_cases():
    torch.manual_seed(0)
    cases = {}
    for dtype in DTYPES:
        for n, d in ((0, 5), (1, 1), (2, 7), (33, 257), (150, 17)):
            cases[f"{dtype} {n}x{d}"] = pairs_case((torch.randn(n, d) + 0.3).to(dtype))
        a, b = torch.randn(40, 33).to(dtype), torch.randn(70, 33) + 0.2
        for other in DTYPES:
            cases[f"{dtype} and {other}"] = pairs_case(a, b.to(other), 77, -0.05, 0.3)
        cases[f"{dtype} no b"] = pairs_case(a, b[:0].to(dtype))
        cases[f"{dtype} turned"] = pairs_case(torch.randn(31, 60).to(dtype).T, bins=65536)
        cases[f"{dtype} sink"] = pairs_case(sink(50, 12, dtype))
        twins = torch.tensor([[1.0, 2.0, -3.0]]).to(dtype).repeat(20, 1)
        twins[::2] *= -2
        cases[f"{dtype} duplicates and antipodes"] = pairs_case(twins, bins=8)
    for scale in (1e-30, 1e30):
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            x = torch.randn(60, 20).to(dtype)
            x[::2] *= scale
            cases[f"{dtype} {scale}"] = pairs_case(x)
    cases["float16 beyond its squares"] = pairs_case(torch.full((9, 33), 6e4).half())
    return cases


GRAMS = {f"gram {name}": case for name, case in gram_cases().items()}
PAIRS = {f"pairs {name}": case for name, case in pair_cases().items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return interpreted(CODE, GRAMS | PAIRS, tmp_path_factory.mktemp("ops"))


def assert_grams(found, case):
    """Both Grams and totals equal those of the kept rows about the pilot, in float64."""
    _, x, mask, pilot, *_ = case
    _, _, _, _, raw, unit, totals, noise = found
    kept = reference.kept_rows(x, mask).double()
    units = reference.directions(kept)
    units = units[(units != 0).any(dim=1)]
    half = x.dtype in (torch.float16, torch.bfloat16)
    assert bool((noise > 0).any()) == (half and len(units) > 0)
    for which, (gram, rows) in enumerate(((raw, kept), (unit, units))):
        about = rows - pilot[which]
        size = about.abs().T @ about.abs()
        # Differences from the pilot are rounded to float64 or float32 before they are multiplied.
        allowed = (HALF if half else DOUBLE) * size + 2.0**-50 * len(rows)
        assert ((gram - about.T @ about).abs() <= allowed).all()
        assert torch.equal(gram, gram.T)
        largest = about.abs().sum(0)
        assert ((totals[which] - about.sum(0)).abs() <= HALF * largest + 2.0**-45).all()
        error = torch.linalg.norm(gram - about.T @ about)
        top = torch.linalg.matrix_norm(about.T @ about, 2) if len(rows) else 0.0
        assert error <= 2 * (top * noise[which]).sqrt() + 2.0**-40 * (1 + size.sum())


def assert_pairs(found, case):
    """As many cosines below every edge as in float64, those within ERROR of it apart."""
    _, a, b, low, high, *_ = case
    *_, counts, extremes = found
    values = reference.pair_cosines(a.double(), None if b is None else b.double())
    values = values.clamp(-1, 1).flatten().sort().values
    bins = len(counts) - 2
    edges = low + (high - low) / bins * torch.arange(bins, dtype=torch.float64)
    below = counts[: bins + 1].cumsum(0)[:bins]
    assert int(counts.sum()) == len(values)
    assert (below >= torch.searchsorted(values, edges - ERROR)).all()
    assert (below <= torch.searchsorted(values, edges + ERROR)).all()
    assert (values > high + ERROR).sum() <= counts[-1] <= (values > high - ERROR).sum()
    if len(values):
        torch.testing.assert_close(extremes, values[[0, -1]], rtol=0.0, atol=ERROR)
    else:
        assert extremes.tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("name", GRAMS)
def test_gram_equals_reference(name, results):
    assert_grams(results[name], GRAMS[name])


@pytest.mark.parametrize("name", PAIRS)
def test_pair_histogram_equals_reference(name, results):
    assert_pairs(results[name], PAIRS[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_wrong_row_would_be_seen(dtype, results):
    name = f"gram {dtype} no mask"
    op, x, *rest = GRAMS[name]
    turned = x.clone()
    turned[7, 3] += 0.25
    with pytest.raises(AssertionError):
        assert_grams(results[name], (op, turned, *rest))
    name = f"pairs {dtype} 150x17"
    op, a, *rest = PAIRS[name]
    turned = a.clone()
    turned[7] *= -1
    with pytest.raises(AssertionError):
        assert_pairs(results[name], (op, turned, *rest))


class OnGpu:
    """What a choice looks at, of rows on a GPU that is not there."""

    def __init__(self, dtype):
        self.dtype, self.device, self.shape = dtype, torch.device("cuda", 0), (9, 9)

    def element_size(self):
        return self.dtype.itemsize


@pytest.mark.parametrize("dtype", ROW_DTYPES, ids=str)
@pytest.mark.parametrize("op", ["gram", "pair_histogram"])
def test_choice_on_a_gpu_says_why(op, dtype, monkeypatch):
    monkeypatch.setattr(tiles, "capability", lambda device: 90)
    choose = import_module(f"aniso.ops.{op}")._choose
    chosen = choose(OnGpu(dtype))
    assert chosen.name == "triton" and "tensor cores" in chosen.reason
    wide = dtype.itemsize > 2
    assert op == "pair_histogram" or ("float64" in chosen.reason) == wide
    monkeypatch.setattr(tiles, "capability", lambda device: 120)
    assert (choose(OnGpu(dtype)).name == "torch") == (op == "gram" and wide)
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    chosen = choose(OnGpu(dtype))
    assert chosen.name == "torch" and "Triton is missing" in chosen.reason


@pytest.mark.parametrize("op", ["gram", "pair_histogram"])
def test_no_other_device(op):
    with pytest.raises(aniso.InputError, match="x lies on meta; move it to a CPU or a CUDA device"):
        aniso.select_backend(op, torch.zeros(2, 2, device="meta"))


def on_gpu(case, device="cuda"):
    """The case with its accumulators as they are after a run on a GPU."""
    moved = [t.to(device) if isinstance(t, torch.Tensor) else t for t in case[1:]]
    moved[2:] = [t.clone() if isinstance(t, torch.Tensor) else t for t in moved[2:]]
    op = {"gram": gram_into, "pairs": pair_histogram_into}[case[0]]
    op(*moved)
    found = [t.cpu() if isinstance(t, torch.Tensor) else t for t in moved[2:]]
    return [*case[:3], *found]


@pytest.mark.gpu
@pytest.mark.parametrize("name", GRAMS | PAIRS)
def test_gpu_equals_reference(name):
    case = (GRAMS | PAIRS)[name]
    check = assert_grams if case[0] == "gram" else assert_pairs
    check(on_gpu(case), case)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("about", [False, True])
def test_gpu_gram_of_many_rows(dtype, about):
    assert aniso.select_backend("gram", torch.zeros(2, 2, dtype=dtype).cuda()).name == "triton"
    case = gram_case(spoiled(30_001, 513, dtype), about=about)
    first, second = on_gpu(case), on_gpu(case)
    assert_grams(first, case)
    assert torch.equal(first[4], second[4]) and torch.equal(first[5], second[5])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_pairs_of_many_rows(dtype):
    x = torch.zeros(2, 2, dtype=dtype).cuda()
    assert aniso.select_backend("pair_histogram", x).name == "triton"
    within = pairs_case((torch.randn(5_001, 300) + 0.3).to(dtype), bins=2048)
    between = pairs_case(torch.randn(3_001, 65).to(dtype), torch.randn(1_999, 65).to(dtype))
    for case in (within, between):
        assert_pairs(on_gpu(case), case)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", ["gram torch.bfloat16 150x70 about=True", "pairs torch.float32 150x17"]
)
def test_on_another_device_and_stream(name):
    """The tensors' device need not be the current one; the current stream of theirs is used."""
    case = (GRAMS | PAIRS)[name]
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    check = assert_grams if case[0] == "gram" else assert_pairs
    with torch.cuda.stream(torch.cuda.Stream(device)):
        torch.cuda._sleep(10_000_000)
        with torch.cuda.device(0):
            check(on_gpu(case, device), case)


@pytest.mark.gpu
@pytest.mark.parametrize("about", [False, True])
def test_gpu_gram_beyond_32_bits(about):
    """2.9e6 rows of 768, more than 2³¹ numbers: 2900 times the second moments of the first 1000."""
    base = (torch.randn(1000, 768) + 0.3).bfloat16()
    case = gram_case(base, masked=False, about=about)
    found = on_gpu((case[0], base.cuda().repeat(2900, 1), *case[2:]))
    assert_grams((*case[:4], *(sums / 2900 for sums in found[4:])), case)


@pytest.mark.gpu
def test_gpu_pairs_beyond_32_bits():
    """A short source against one of more than 2³¹ numbers: every cosine 2900 times."""
    a, base = torch.randn(3, 768).bfloat16(), (torch.randn(1000, 768) + 0.3).bfloat16()
    case = pairs_case(a, base)
    found = on_gpu((*case[:2], base.cuda().repeat(2900, 1), *case[3:]))
    counts = found[-2]
    assert int(counts.sum()) == 3 * 2_900_000
    assert (counts % 2900 == 0).all()
    assert_pairs((counts // 2900, found[-1]), case)
