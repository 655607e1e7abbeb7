from __future__ import annotations

import math
import re

import pytest
import torch
from aniso.triton_kernels.launch_configs import PAIR_CHUNKS, pairs_config
from aniso.triton_kernels.pair_histogram import aot_cases, pair_histogram, pairs_kernel
from aot import PLAIN_SHARED_LIMIT, SHARED_LIMIT, compiled, resources, serialized
from interpreter import interpreted
from rows import DTYPES

from aniso import reference

RUNS = [(case, capability) for case in aot_cases() for capability in case.capabilities]
CODE = """
from aniso.triton_kernels import pair_histogram as module
module.PAIR_MACRO_ROWS = 256  # several squares of tiles from few rows
for capability, most, a, inverse_a, b, inverse_b, low, high, counts, extremes in arguments.values():
    module.capability = lambda device: capability
    module._MOST_COUNTS = most
    module.pair_histogram(a, inverse_a, b, inverse_b, low, high, counts, extremes)
"""
POINTERS, DESCRIPTORS = 0, 90  # capabilities: how the kernel reads its tiles
MOST = 2**31 - 1


@pytest.mark.parametrize("run", RUNS, ids=lambda r: f"{r[0].name} {r[1]}".replace(" ", "-"))
def test_compiles_without_spills(run, tmp_path):
    case, capability = run
    kernel = compiled(case, capability)
    local, shared = resources(kernel, tmp_path)
    assert local == 0
    assert kernel.metadata.shared + shared <= SHARED_LIMIT[capability]
    assert re.search(r"tt\.addptr .*(xi64>|, i64)", kernel.asm["ttir"])
    if case.kernel is pairs_kernel and capability == 90 and case.constants["DESCRIPTORS"]:
        assert "wgmma.mma_async" in kernel.asm["ptx"]
        # One dot is in flight while the next step's tiles are waited for.
        assert "wgmma.wait_group.sync.aligned 1;" in kernel.asm["ptx"]
        assert not serialized(kernel, tmp_path)


@pytest.mark.parametrize(
    "run", [r for r in RUNS if r[0].constants.get("SHARED")], ids=lambda r: r[0].name
)
def test_bins_in_shared_memory(run, tmp_path):
    """The assumptions that inline PTX makes of what Triton and ptxas put around it."""
    case, capability = run
    kernel = compiled(case, capability)
    _, shared = resources(kernel, tmp_path)
    # Triton's own shared memory follows the bins, and its tiles need 1024-byte alignment.
    assert shared >= 33792
    assert shared % 1024 == 0
    # Only then does Triton ask for more than 48 KiB, which bins and tiles need together.
    assert kernel.metadata.shared > PLAIN_SHARED_LIMIT
    threads, chunk = case.constants["THREADS"], case.constants["CHUNK"]
    counts = kernel.asm["ptx"].count("red.shared.add.u32")
    area = case.constants["BLOCK_N"] * case.constants["BLOCK_M"]
    assert counts == (2 * chunk if chunk else area) // threads
    layouts = re.findall(
        r'elementwise_inline_asm "{ red\.shared.*-> tensor<\d+xi32, (#\w+)>', kernel.asm["ttgir"]
    )
    assert bool(layouts) == bool(chunk)
    for name in layouts:
        # A code that several threads hold would be counted several times.
        assert elements_held(kernel.asm["ttgir"], name) <= chunk


def elements_held(ttgir, name):
    """Elements that all threads together hold of a tensor in a blocked layout of one dimension."""
    sizes = r"sizePerThread = \[(\d+)\], threadsPerWarp = \[(\d+)\], warpsPerCTA = \[(\d+)\]"
    return math.prod(map(int, re.search(rf"{name} = #ttg\.blocked<{{{sizes}", ttgir).groups()))


@pytest.mark.parametrize("element_bytes", [2, 4, 8])
@pytest.mark.parametrize("d", [1, 64, 128, 255, 256, 768, 4096, 8192])
@pytest.mark.parametrize("capability", [80, 90])
def test_codes_are_counted_in_time(capability, d, element_bytes):
    """Where counting is deferred, some chunk size fits the dots of a tile."""
    config = pairs_config(d, element_bytes, capability)
    dots = -(-d // 64) * 64 // config.block_d * (3 if element_bytes == 4 else 1)
    area = config.block_n * config.block_m
    wide = config.block_m == 256
    assert not wide or any(chunk * dots >= area for chunk in PAIR_CHUNKS)
    assert wide == (element_bytes == 2 and d >= 256 and capability == 90)


def rows(n, d, dtype, scale=1.0):
    """Rows with an offset; among them a row of zeros and two equal ones."""
    x = torch.randn(n, d, dtype=torch.float64) + 0.3
    if n >= 7:
        x[1] = 0
        x[5] = x[4]
    return (x * scale).to(dtype)


def inverse_of(x):
    """1/‖x‖, 0 for rows of zeros and for every 13th row, which then holds NaN."""
    lengths = reference.norms(x.double())
    inverse = torch.where(lengths > 0, 1 / torch.where(lengths > 0, lengths, 1.0), 0.0)
    inverse[12::13] = 0
    x[12::13, 0] = math.nan
    return inverse


def entry(a, capability, bins=50, b=None, low=-1.0, high=1.0, most=MOST):
    a, b = a.clone(), None if b is None else b.clone()
    inverse_a, inverse_b = inverse_of(a), None if b is None else inverse_of(b)
    counts = torch.arange(bins + 2)
    extremes = torch.tensor([math.inf, -math.inf], dtype=torch.float64)
    return capability, most, a, inverse_a, b, inverse_b, low, high, counts, extremes


def inputs():
    torch.manual_seed(0)
    cases = {}
    for capability in (POINTERS, DESCRIPTORS):
        for dtype in DTYPES:
            name = f"{capability} {dtype}"
            for n, d in ((1, 5), (2, 1), (300, 130)):
                cases[f"{name} {n}x{d}"] = entry(rows(n, d, dtype), capability)
            a, b = rows(140, 300, dtype), rows(270, 300, dtype)
            cases[f"{name} between"] = entry(a, capability, 700, b=b, low=-0.25, high=0.5)
    for dtype in DTYPES:
        strided = rows(270, 90, dtype)[::3, 3:74]
        cases[f"{dtype} strided"] = entry(strided, DESCRIPTORS, 65536, low=-0.5)
        for scale in (1e-30, 1e30) if dtype != torch.float16 else (1e-3, 1e3):
            x = rows(60, 40, dtype, scale)
            cases[f"{dtype} {scale}"] = entry(x, POINTERS, 9000, high=0.25)
    x = rows(700, 16, torch.float16)
    cases["several spans"] = entry(x, POINTERS, most=3 * 2**14)
    cases["no b"] = entry(x[:9], POINTERS, b=x[:0])
    return cases


INPUTS = inputs()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return interpreted(CODE, INPUTS | EXACT, tmp_path_factory.mktemp("pairs"))


# Of a cosine: 3·2⁻²⁴ of pieces, 512 products and then promoted sums in float32 that tensor cores
# truncate (7e-7) or that round; without promotion, 2e-9 per dimension more.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6}


def tolerance_of(a):
    return TOLERANCE.get(a.dtype, 1e-6 + 2e-9 * a.shape[1])


def cosines(a, inverse_a, b, inverse_b):
    """The cosines that count, in float64 on a's device."""
    keep_a, keep_b = inverse_a > 0, (inverse_a if b is None else inverse_b) > 0
    left = a.double()[keep_a] * inverse_a[keep_a, None]
    if b is None:
        i, j = torch.triu_indices(len(left), len(left), 1, device=a.device)
        return (left @ left.T)[i, j]
    return (left @ (b.double()[keep_b] * inverse_b[keep_b, None]).T).flatten()


def assert_histogram(counts, extremes, before, expected, low, high, tolerance):
    """As many cosines below every border as there are, those within `tolerance` of it apart."""
    bins = len(counts) - 2
    below = (counts - before).cumsum(0)
    borders = low + (high - low) / bins * torch.arange(bins + 1, dtype=torch.float64)
    values = expected.clamp(-1, 1).sort().values.cpu()
    least = torch.searchsorted(values, borders - tolerance)
    most = torch.searchsorted(values, borders + tolerance, right=True)
    # -1 and 1 themselves are clamped to, never passed.
    least[borders <= -1], most[borders <= -1] = 0, 0
    least[borders >= 1], most[borders >= 1] = len(values), len(values)
    assert int(below[-1]) == len(values)
    assert (least <= below[:-1]).all()
    assert (below[:-1] <= most).all()
    if len(values):
        torch.testing.assert_close(extremes, values[[0, -1]], rtol=0, atol=tolerance)
        assert -1 <= extremes[0] <= extremes[1] <= 1
    else:
        assert extremes.tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize("name", INPUTS)
def test_interpreter_equals_reference(name, outputs):
    _, _, a, inverse_a, b, inverse_b, low, high, before, _ = INPUTS[name]
    counts, extremes = outputs[name][-2:]
    expected = cosines(a, inverse_a, b, inverse_b)
    assert_histogram(counts, extremes, before, expected, low, high, tolerance_of(a))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_wrong_row_would_be_seen(dtype, outputs):
    name = f"{DESCRIPTORS} {dtype} 300x130"
    _, _, a, inverse_a, b, inverse_b, low, high, before, _ = INPUTS[name]
    turned = a.clone()
    turned[299] *= -1
    expected = cosines(turned, inverse_a, b, inverse_b)
    with pytest.raises(AssertionError):
        assert_histogram(*outputs[name][-2:], before, expected, low, high, tolerance_of(a))


def exact_inputs():
    """Rows ±2^k e_i: their cosines are -1, 0 and 1 exactly, also on the borders of bins."""
    signs = torch.tensor([[1, 0], [-4, 0], [0, 0.5], [2, 0]], dtype=torch.float64)
    cases = {}
    for capability in (POINTERS, DESCRIPTORS):
        for dtype in DTYPES:
            for low, high in ((-1.0, 1.0), (-1.0, 0.0), (0.0, 1.0), (-0.5, 0.5)):
                case = list(entry(signs.to(dtype), capability, 4, low=low, high=high))
                case[-2] = torch.zeros(6, dtype=torch.int64)
                cases[f"exact {capability} {dtype} {low} {high}"] = tuple(case)
    return cases


EXACT = exact_inputs()
# Pairs: (0,1), (1,3): -1; (0,2), (1,2), (2,3): 0; (0,3): 1. Below, four bins, above.
EXACT_COUNTS = {
    (-1.0, 1.0): [0, 2, 0, 3, 1, 0],
    (-1.0, 0.0): [0, 2, 0, 0, 3, 1],
    (0.0, 1.0): [2, 3, 0, 0, 1, 0],
    (-0.5, 0.5): [2, 0, 0, 3, 0, 1],
}


@pytest.mark.parametrize("name", EXACT)
def test_borders_belong_to_the_upper_bin_and_high_to_the_last(name, outputs):
    *_, low, high, counts, extremes = outputs[name]
    assert counts.tolist() == EXACT_COUNTS[low, high]
    assert extremes.tolist() == [-1, 1]


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", [n for n in INPUTS | EXACT if not n.startswith(("0 ", "exact 0 "))]
)
def test_gpu_equals_reference(name):
    _, _, a, inverse_a, b, inverse_b, low, high, before, extremes = (INPUTS | EXACT)[name]
    moved = [None if t is None else t.cuda() for t in (a, inverse_a, b, inverse_b)]
    counts, found = before.cuda(), extremes.cuda()
    pair_histogram(*moved, low, high, counts, found)
    if name in EXACT:
        assert counts.tolist() == EXACT_COUNTS[low, high]
        assert found.tolist() == [-1, 1]
    expected = cosines(a, inverse_a, b, inverse_b)
    assert_histogram(counts.cpu(), found.cpu(), before, expected, low, high, tolerance_of(a))


@pytest.mark.gpu
@pytest.mark.parametrize("bins", [2048, 65536])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("n", "m", "d"), [(9_001, None, 768), (5_000, 3_001, 1025), (700, None, 65)]
)
def test_gpu_equals_reference_on_many_rows(n, m, d, dtype, bins):
    a = rows(n, d, dtype)
    b = None if m is None else rows(m, d, dtype)
    _, _, a, inverse_a, b, inverse_b, low, high, before, extremes = entry(a, 90, bins, b=b)
    moved = [None if t is None else t.cuda() for t in (a, inverse_a, b, inverse_b)]
    results = []
    for _ in range(2):
        counts, found = before.cuda(), extremes.cuda()
        pair_histogram(*moved, low, high, counts, found)
        results.append((counts.cpu(), found.cpu()))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    expected = cosines(*moved)
    assert_histogram(*results[0], before, expected, low, high, tolerance_of(a))


@pytest.mark.gpu
@pytest.mark.parametrize("bins", [7, 2048, 65536])
def test_gpu_counts_a_single_cosine(bins):
    """All rows equal: the narrowest distribution; every pair is in the last bin."""
    n = 6000
    a = torch.randn(1, 512, dtype=torch.float64).bfloat16().expand(n, 512).contiguous().cuda()
    inverse = 1 / a.double().norm(dim=1)
    counts = torch.zeros(bins + 2, dtype=torch.int64, device="cuda")
    extremes = torch.tensor([math.inf, -math.inf], dtype=torch.float64, device="cuda")
    pair_histogram(a, inverse, None, None, -1.0, 1.0, counts, extremes)
    last = counts[-2 - bins // 1024 :].sum()  # the cosine itself may be 1 - 1e-6
    assert int(last) == int(counts.sum()) == n * (n - 1) // 2
