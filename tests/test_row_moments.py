from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from rows import DTYPES, SIZES, assert_moments, spoiled
from torch._subclasses.fake_tensor import FakeTensorMode

import aniso
from aniso import _native, reference
from aniso.moments import RowMoments
from aniso.ops import row_moments_into

ISAS = ["baseline", "avx2", "avx512"]
AVAILABLE = ISAS[: ISAS.index(_native.isa) + 1]


def run_isa(x, mask, isa, threads=1, d=None):
    moments = RowMoments.zeros(d or x.shape[1])
    _native.row_moments_cpu(x, mask, *moments.tensors(), threads=threads, isa=isa)
    return moments


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_equals_reference_on_every_instruction_set(n, d, dtype, masked):
    x = spoiled(n, d, dtype)
    mask = torch.rand(n) > 0.3 if masked else None
    expected = reference.row_moments(x, mask)
    for isa in AVAILABLE:
        assert_moments(run_isa(x, mask, isa), expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), [(3001, 301), (500, 4000), (70_000, 40), (300, 7)])
def test_threads_share_the_rows_and_give_the_same_bits(dtype, n, d):
    x = spoiled(n, d, dtype)
    alone = run_isa(x, None, _native.isa, 1)
    assert_moments(alone, reference.row_moments(x), dtype)
    for threads in (2, 3, 7):
        shared = run_isa(x, None, _native.isa, threads)
        assert all(map(torch.equal, alone.tensors(), shared.tensors()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_parts_and_a_mask(dtype):
    x = (torch.randn(65_600, 256) + 0.3).to(dtype)
    mask = torch.rand(len(x)) > 0.3
    alone = run_isa(x, mask, _native.isa, 1)
    assert_moments(alone, reference.row_moments(x, mask), dtype)
    for threads in (3, 7):
        shared = run_isa(x, mask, _native.isa, threads)
        assert all(map(torch.equal, alone.tensors(), shared.tensors()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [40, 1100])
def test_groups_of_any_number_of_rows(dtype, d):
    """Narrow rows are taken four at a time and wide ones sixteen, some of which do not count."""
    x = (torch.randn(16, d) + 0.3).to(dtype)
    for kept in range(17):
        chosen = torch.randperm(16) < kept
        spoilt = torch.where(chosen[:, None], x, torch.tensor([torch.nan, 0.0])[kept % 2].to(dtype))
        for rows, mask in ((x, chosen), (spoilt, None)):
            expected = reference.row_moments(rows, mask)
            for isa in AVAILABLE:
                assert_moments(run_isa(rows, mask, isa), expected, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])
def test_rows_in_reverse_and_apart_in_memory(dtype):
    wide = np.random.default_rng(0).standard_normal((50, 80)).astype(dtype)
    for x in (wide[::-1, 3:60], wide[::3], wide[::-2]):
        expected = reference.row_moments(torch.tensor(np.ascontiguousarray(x)))
        for isa in AVAILABLE:
            assert_moments(run_isa(x, None, isa), expected, torch.from_numpy(wide).dtype)


def test_strided_rows_and_masks():
    wide = spoiled(100, 90, torch.float32)
    mask = torch.rand(200) > 0.5
    for x in (wide[:, 10:73], wide[::3], wide.T, wide[3:4].expand(50, 90), wide[:, ::2]):
        kept = mask[: 2 * x.shape[0] : 2]
        assert_moments(aniso.row_moments(x, mask=kept), reference.row_moments(x, kept), x.dtype)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e30, 1e37])
def test_float32_far_from_one(scale):
    x = torch.randn(65, 40) * scale
    result = aniso.row_moments(x)
    assert_moments(result, reference.row_moments(x), x.dtype)
    plain = aniso.row_moments(x / scale)
    torch.testing.assert_close(result.unit_sum, plain.unit_sum, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e-160, 1e155, 1e200, 1e307])
def test_float64_squares_out_of_range(scale):
    x = torch.randn(65, 40, dtype=torch.float64)
    for isa in AVAILABLE:
        result = run_isa(x * scale, None, isa)
        units = reference.directions(x * scale)
        torch.testing.assert_close(result.unit_sum, units.sum(0), rtol=1e-9, atol=1e-12)
        assert result.counts.tolist() == [65, 0, 0, 0]
        lengths = reference.norms(x * scale)
        torch.testing.assert_close(result.norm_range[1], lengths.max(), rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("scale", [1e-37, 1e37])
def test_float32_rows_out_of_range_among_others(scale):
    x = torch.randn(65, 40)
    x[::3] *= scale
    for isa in AVAILABLE:
        assert_moments(run_isa(x, None, isa), reference.row_moments(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_norms_of_half_precision_that_one_number_makes_up(dtype):
    x = torch.randn(50, 768)
    x[:, 500] = 2500 * (1 + 0.3 * torch.randn(50))
    steep = torch.zeros(50, 768)
    steep[:, 0], steep[:, [1, 32, 33]] = 1, 2.0**-12 * (1 - 2.0**-8)
    for rows in (x.to(dtype), steep.to(dtype)):
        expected = reference.row_moments(rows)
        for isa in AVAILABLE:
            found = run_isa(rows, None, isa)
            torch.testing.assert_close(found.norm_range, expected.norm_range, rtol=1e-7, atol=0)
            assert_moments(found, expected, dtype)


def test_half_precision_squares_do_not_overflow():
    x = torch.full((9, 33), 6e4, dtype=torch.float16)
    assert_moments(aniso.row_moments(x), reference.row_moments(x), x.dtype)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e15, 1e25])
def test_bfloat16_squares_out_of_the_range_of_float32(scale):
    x = (torch.randn(40, 70) * scale).bfloat16()
    x[::3] = torch.randn(14, 70).bfloat16()
    for isa in AVAILABLE:
        assert_moments(run_isa(x, None, isa), reference.row_moments(x), x.dtype)


def test_one_sink_row_among_small_ones():
    x = torch.randn(200, 64)
    x[7] *= 1e12
    assert_moments(aniso.row_moments(x), reference.row_moments(x), x.dtype)


def test_every_output_is_added_to_and_nothing_beside_it():
    """Sentinels around the accumulators stay; what was in them stays too."""
    x, d = spoiled(50, 37, torch.float32), 37
    expected = reference.row_moments(x)
    sizes = {"sums": (4, d), "norm_sums": (3,), "norm_range": (2,), "abs_max": (d,), "counts": (4,)}
    frames, views = {}, {}
    for name, shape in sizes.items():
        dtype = torch.int64 if name == "counts" else torch.float64
        size = int(np.prod(shape))
        frames[name] = torch.full((size + 16,), 77, dtype=dtype)
        frames[name][8 : 8 + size] = 0
        views[name] = frames[name][8 : 8 + size].view(shape)
    views["norm_range"][0] = torch.inf
    for _ in range(2):
        row_moments_into(x, None, *views.values())
    doubled = expected.merge(expected)
    assert_moments(RowMoments(**views), doubled)
    for frame in frames.values():
        assert (frame[:8] == 77).all() and (frame[-8:] == 77).all()


def test_reads_arrays_of_other_kinds_and_gives_them_back(tmp_path):
    x = np.random.default_rng(0).standard_normal((60, 20)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    mapped.flags.writeable = False
    for array in (x, mapped, x[::-1], x.astype(">f4"), np.asfortranarray(x)):
        result = aniso.row_moments(array)
        assert isinstance(result.sums, np.ndarray)
        expected = reference.row_moments(torch.tensor(np.ascontiguousarray(array, np.float32)))
        assert_moments(result.map(torch.as_tensor), expected)


def test_native_reads_readonly_numpy_through_dlpack():
    x = np.random.default_rng(0).standard_normal((6, 20))
    x.flags.writeable = False
    moments = RowMoments.zeros(20)
    _native.row_moments_cpu(x, None, *moments.tensors(), threads=1, isa="baseline")
    assert_moments(moments, reference.row_moments(torch.tensor(x)), torch.float64)


class Behind:
    """An array that tells of itself through __dlpack__ alone."""

    def __init__(self, array):
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


class BehindAndNoCapsule(Behind):
    __dlpack_c_exchange_api__ = None


@pytest.mark.parametrize("kind", [Behind, BehindAndNoCapsule])
def test_native_asks_dlpack_where_there_is_no_faster_way(kind):
    x = torch.randn(6, 20)
    expected = run_isa(x, None, _native.isa)
    found = run_isa(kind(x), None, _native.isa, d=20)
    assert all(map(torch.equal, found.tensors(), expected.tensors()))


def test_native_refuses_tensors_without_memory():
    with FakeTensorMode():
        fake = torch.empty(3, 4)
    with pytest.raises(ValueError, match="x has no numbers in memory"):
        run_isa(fake, None, _native.isa)
    with pytest.raises(BufferError, match="layout"):
        run_isa(torch.eye(4).to_sparse(), None, _native.isa)


@pytest.mark.parametrize(
    ("x", "mask", "words"),
    [
        (torch.zeros(3), None, "shape [3]"),
        (torch.zeros(2, 3, 4), None, "shape [2, 3, 4]"),
        (torch.zeros(3, 0), None, "no columns"),
        (torch.zeros(3, 4, dtype=torch.int64), None, "dtype int64"),
        (np.array([["a"]]), None, "dtype <U1"),
        ([[1.0]], None, "is a list"),
        (torch.zeros(3, 4), torch.ones(3), "float32 [3]"),
        (torch.zeros(3, 4), torch.ones(4, dtype=torch.bool), "bool [4]"),
    ],
)
def test_bad_input_is_one_sentence(x, mask, words):
    with pytest.raises(aniso.InputError) as caught:
        aniso.row_moments(x, mask=mask)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_native_refuses_what_does_not_fit():
    x, moments = torch.zeros(3, 4), RowMoments.zeros(4)
    wrong = list(RowMoments.zeros(5).tensors())
    with pytest.raises(ValueError, match="accumulator of 16 float64"):
        _native.row_moments_cpu(x, None, *wrong, threads=1, isa=_native.isa)
    with pytest.raises(ValueError, match="instruction set 'sse9'"):
        _native.row_moments_cpu(x, None, *moments.tensors(), threads=1, isa="sse9")


@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(masked):
    x = torch.randn(40, 24)
    mask = torch.rand(40) > 0.5 if masked else None
    torch.library.opcheck(row_moments_into, (x, mask, *RowMoments.zeros(24).tensors()))


def test_inside_a_fully_compiled_graph():
    moments = RowMoments.zeros(32)

    @torch.compile(fullgraph=True)
    def layer(x):
        y = torch.relu(x) + 1
        torch.ops.aniso.row_moments(y, None, *moments.tensors())
        return y * 2

    rows = [torch.randn(50, 32) for _ in range(3)]
    for x in rows:
        layer(x)
    expected = reference.row_moments(torch.cat([torch.relu(x) + 1 for x in rows]))
    assert_moments(moments, expected)


def test_select_backend_says_why():
    chosen = aniso.select_backend("row_moments", torch.zeros(2, 2))
    assert chosen.name == f"cpu-{_native.isa}" and "instruction set" in chosen.reason
    with pytest.raises(aniso.InputError, match="no op is called 'nothing'"):
        aniso.select_backend("nothing", torch.zeros(2, 2))
    with pytest.raises(aniso.InputError, match="lies on meta"):
        aniso.select_backend("row_moments", torch.zeros(2, 2, device="meta"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d"), [*SIZES, (100_003, 768), (777, 16384)])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_gpu_equals_reference(n, d, dtype, backend, monkeypatch):
    if backend == "triton":
        monkeypatch.setattr(_native, "has_cuda", False)
    elif not _native.has_cuda:
        pytest.fail("this build has no CUDA kernels; build it with nvcc on PATH")
    x = spoiled(n, d, dtype)
    mask = torch.rand(n) > 0.3
    result = aniso.row_moments(x.cuda(), mask=mask.cuda())
    expected = reference.row_moments(x, mask)
    assert_moments(result.map(torch.Tensor.cpu), expected, torch.float64)


def test_a_forked_process_sums_the_same():
    """The threads of OpenMP stay behind in a fork: waiting for them would never end."""
    code = (
        "import os, signal, torch, aniso\n"
        "torch.manual_seed(0)\n"
        "torch.set_num_threads(2)\n"
        "x = torch.randn(5000, 768)\n"
        "before = aniso.row_moments(x).sums.tolist()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(60)\n"
        "    os._exit(aniso.row_moments(x).sums.tolist() != before)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
    )
    subprocess.run([sys.executable, "-P", "-W", "ignore", "-c", code], check=True)


def test_called_from_within_a_parallel_region():
    """OpenMP gives a region inside another one thread only: threads of our own take over."""
    code = (
        "import ctypes, torch, aniso\n"
        "torch.set_num_threads(2)\n"
        "x = torch.randn(5000, 768)\n"
        "before = aniso.row_moments(x).sums\n"
        "found = []\n"
        "@ctypes.CFUNCTYPE(None, ctypes.c_void_p)\n"
        "def region(_):\n"
        "    found.append(aniso.row_moments(x).sums)\n"
        "ctypes.CDLL(None).GOMP_parallel(region, None, 2, 0)\n"
        "assert len(found) == 2 and all(torch.equal(before, sums) for sums in found)\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=60)
