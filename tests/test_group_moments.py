from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from groups import GROUP_SIZES, assert_sums, reference_sums, runs_and_outputs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rows import DTYPES, close, spoiled

import aniso
from aniso import _native, reference
from aniso.errors import InputError
from aniso.ops import group_moments, group_moments_into
from aniso.ops._runs import runs_of

ISAS = ["baseline", "avx2", "avx512"]
AVAILABLE = ISAS[: ISAS.index(_native.isa) + 1]
SIZES = [*GROUP_SIZES, (1000, 17, 1000), (300, 1100, 3)]


def run_isa(x, ids, wanted, isa=_native.isa, threads=1, scale=1.0):
    runs, outputs = runs_and_outputs(x, ids, wanted)
    _native.group_moments_cpu(x, runs.tensors(), outputs, scale, threads=threads, isa=isa)
    return outputs


def empty_sums(groups, d):
    """counts, sums, unit_sums, square_norms: in the order of the op."""
    double = torch.zeros(2, groups, d, dtype=torch.float64)
    return torch.zeros(groups, dtype=torch.int64), *double, torch.zeros(groups).double()


def run_op(x, ids, groups, mask=None):
    counts, sums, unit_sums, square_norms = outputs = empty_sums(groups, x.shape[1])
    group_moments_into(x, mask, ids, *outputs)
    return counts, square_norms, sums, unit_sums, None, None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d", "count"), SIZES)
def test_equals_reference_on_every_instruction_set(n, d, count, dtype):
    x, ids = spoiled(n, d, dtype), torch.randint(-1, count, (n,))
    expected = reference_sums(x, ids, 0.5)
    for isa in AVAILABLE:
        for wanted in ({"sums", "unit_sums"}, {"sums"}, {"unit_sums"}, {"products"}):
            assert_sums(run_isa(x, ids, wanted, isa, scale=0.5), expected)


@pytest.mark.parametrize("wanted", [("sums", "unit_sums"), ("products",)])
def test_any_number_of_threads_gives_the_same_bits(wanted):
    x, ids = torch.randn(4000, 301), torch.randint(90, (4000,)) ** 2
    single = run_isa(x, ids, wanted)
    assert_sums(single, reference_sums(x, ids))
    for threads in (2, 3, 7):
        several = run_isa(x, ids, wanted, threads=threads)
        for a, b in zip(single[:5], several[:5], strict=True):
            assert a is b is None or torch.equal(a, b)
        if "products" in wanted:  # totals have a row per thread
            close(several[5].sum(0), single[5].sum(0), 4000)


def test_op_adds_and_touches_nothing_else():
    """Sentinels around the accumulators stay; what was in them stays too."""
    x, ids = spoiled(50, 37, torch.float32), torch.randint(-2, 7, (50,))
    frames = [torch.full((t.numel() + 16,), 77, dtype=t.dtype) for t in empty_sums(9, 37)]
    views = [f[8:-8].view(t.shape) for f, t in zip(frames, empty_sums(9, 37), strict=True)]
    for view in views:
        view.zero_()
    for _ in range(2):
        group_moments_into(x, None, ids, *views)
    counts, square_norms, sums, unit_sums, *_ = reference_sums(x, ids)
    for view, once in zip(views, (counts, sums, unit_sums, square_norms), strict=True):
        close(view[: len(once)], 2 * once, 50)
        assert not view[len(once) :].any()
    for frame in frames:
        assert (frame[:8] == 77).all() and (frame[-8:] == 77).all()


def test_each_sum_may_be_left_out():
    x, ids = spoiled(50, 37, torch.bfloat16), torch.randint(5, (50,))
    expected = reference_sums(x, ids)
    for left_out in (1, 2):
        outputs = list(empty_sums(5, 37))
        outputs[left_out] = None
        group_moments_into(x, None, ids, *outputs)
        counts, sums, unit_sums, square_norms = outputs
        assert_sums((counts, square_norms, sums, unit_sums, None, None), expected)


def test_masked_rows_are_in_no_group():
    x, ids, mask = spoiled(80, 21, torch.float64), torch.randint(6, (80,)), torch.rand(80) > 0.4
    assert_sums(run_op(x, ids, 6, mask), reference_sums(x, torch.where(mask, ids, -1)))


def test_strided_rows_and_ids():
    wide, every_id = spoiled(100, 90, torch.float32), torch.randint(-1, 4, (200,))
    every_id[0] = 3
    for x in (wide[:, 10:73], wide[::3], wide.T, wide[3:4].expand(50, 90), wide[:, ::2]):
        ids = every_id[: 2 * x.shape[0] : 2]
        assert_sums(run_op(x, ids, 4), reference_sums(x, ids))


@pytest.mark.parametrize("shape", ["sorted", "random", "one", "distinct"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_long_runs_are_divided_without_a_trace(shape, dtype, monkeypatch):
    x = spoiled(61, 33, dtype)
    ids = {
        "sorted": torch.arange(61) // 25,
        "random": torch.randint(-1, 3, (61,)),
        "one": torch.zeros(61, dtype=torch.int64),
        "distinct": torch.randperm(61),
    }[shape]
    expected = reference_sums(x, ids)
    monkeypatch.setattr(group_moments, "_SHORTEST_PIECE", 4)
    monkeypatch.setattr(group_moments, "_PIECES", 20)
    assert_sums(run_op(x, ids, len(expected[0])), expected)
    counts, products, total = group_moments.group_products(x, runs_of(ids, None))
    close(total, expected[5], 61)
    present = expected[0] > 0
    assert counts[counts > 0].tolist() == expected[0][present].tolist()
    close(products[counts > 0], expected[4][present], 61 * 33)


def test_pieces_cover_every_row_once():
    runs = runs_of(torch.tensor([0] * 10 + [3] * 2 + [5] * 4 + [6] * 5), None)
    divided = runs.divided(4)
    assert divided.short.slot.tolist() == [3, 5] and divided.slots.tolist() == [0, 6]
    spans = list(zip(divided.pieces.begin.tolist(), divided.pieces.end.tolist(), strict=True))
    assert spans == [(0, 4), (4, 8), (8, 10), (16, 20), (20, 21)]
    assert runs.divided(10) is None


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e-160, 1e155, 1e200, 1e307])
def test_float64_squares_out_of_range(scale):
    x, ids = torch.randn(65, 40, dtype=torch.float64), torch.arange(65) // 22
    for isa in AVAILABLE:
        counts, _, _, units, *_ = run_isa(x * scale, ids, {"unit_sums"}, isa)
        assert counts.tolist() == [22, 22, 21]
        expected = reference_sums(x * scale, ids)[3]
        torch.testing.assert_close(units, expected, rtol=1e-9, atol=1e-12)
    plain, scaled = aniso.group_cosine(x, ids), aniso.group_cosine(x * scale, ids)
    for name in ("per_group", "intra_similarity"):
        torch.testing.assert_close(getattr(scaled, name), getattr(plain, name), rtol=1e-9, atol=0)


def assert_cosines(result, expected, n, d):
    """Every number of GroupCosine, NaN where the reference has NaN."""
    for name in ("within", "within_mean", "between", "per_group", "intra_similarity"):
        actual = torch.as_tensor(getattr(result, name), dtype=torch.float64)
        wanted = torch.as_tensor(expected[name], dtype=torch.float64)
        assert torch.equal(actual.isnan(), wanted.isnan()), name
        # Cosines are differences of squares as large as n n_g, of n d roundings, over n_g².
        tolerance = 16 * math.sqrt(n * d) * torch.finfo(torch.float64).eps
        torch.testing.assert_close(actual, wanted, rtol=0, atol=tolerance, equal_nan=True, msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d", "count"), [s for s in SIZES if s[0] > 0])
@pytest.mark.parametrize("masked", [False, True])
def test_group_cosine_equals_reference(n, d, count, dtype, masked):
    x = spoiled(n, d, dtype)
    finite = torch.isfinite(x).all(dim=1)
    ids = torch.randint(-1, count, (n,)) * 1_000_003 - 5
    mask = finite & (torch.rand(n) > 0.3) if masked or not finite.all() else None
    if not ((ids >= 0) & (finite if mask is None else mask)).any():
        ids[finite] = 8
        mask = None if finite.all() else finite
    result = aniso.group_cosine(x, ids, mask=mask)
    present, counts, *_ = reference.group_moments(x, ids, mask)
    assert result.ids.tolist() == present.tolist() and result.groups == len(present)
    assert result.counts.tolist() == counts.tolist()
    kept = (ids >= 0) if mask is None else (ids >= 0) & mask
    assert (result.rows, result.rows - result.zero_rows) == (int(kept.sum()), int(counts.sum()))
    assert_cosines(result, reference.group_cosine(x, ids, mask), n, d)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_first_token_cosine_equals_reference(dtype, masked):
    x = torch.randn(120, 33).to(dtype) + 0.5
    x[::13] = 0
    ids = torch.randint(-1, 20, (120,))
    mask = torch.rand(120) > 0.3 if masked else None
    expected = reference.first_token_cosine(x, ids, mask)
    assert aniso.first_token_cosine(x, ids, mask=mask) == pytest.approx(expected, abs=1e-13)


def test_first_token_needs_another():
    assert math.isnan(aniso.first_token_cosine(torch.randn(4, 3), torch.arange(4)))
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert math.isnan(aniso.first_token_cosine(x, torch.zeros(3, dtype=torch.int64)))


def test_order_of_the_rows_does_not_matter():
    x, ids = torch.randn(500, 24), torch.randint(40, (500,))
    by_id = ids.argsort(stable=True)
    unsorted, in_order = aniso.group_cosine(x, ids), aniso.group_cosine(x[by_id], ids[by_id])
    for name in ("ids", "counts", "per_group", "intra_similarity"):
        assert torch.equal(getattr(unsorted, name), getattr(in_order, name)), name
    assert unsorted.within == in_order.within


@settings(deadline=None, max_examples=60)
@given(
    ids=st.lists(st.integers(0, 6), min_size=2, max_size=40),
    d=st.integers(1, 20),
    seed=st.integers(0, 99),
)
@example(ids=[0, 0], d=3, seed=0)
@example(ids=[0, 1], d=3, seed=0)
def test_within_and_between_add_up_to_the_mean_cosine(ids, d, seed):
    x = torch.randn(len(ids), d, generator=torch.Generator().manual_seed(seed))
    result = aniso.group_cosine(x, torch.tensor(ids))
    n = len(ids)
    inside = int((result.counts * (result.counts - 1)).sum())
    outside = n * (n - 1) - inside
    parts = [(result.within, inside), (result.between, outside)]
    assert [math.isnan(value) for value, _ in parts] == [pairs == 0 for _, pairs in parts]
    total = sum(value * pairs for value, pairs in parts if pairs)
    assert total / (n * (n - 1)) == pytest.approx(aniso.cosine_stats(x).mean, abs=1e-13)


def test_known_values():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 3.0], [0.0, -2.0], [5.0, 0.0]])
    result = aniso.group_cosine(x, torch.tensor([7, 7, 9, 9, 8]))
    assert result.ids.tolist() == [7, 8, 9]
    assert result.per_group[[0, 2]].tolist() == [1.0, -1.0] and result.per_group[1].isnan()
    assert (result.within, result.within_mean, result.between) == (0.0, 0.0, 0.25)
    assert result.intra_similarity.tolist() == [1.0, 1.0, 0.0]


def test_nothing_kept():
    for x, ids in ((torch.zeros(0, 4), []), (torch.ones(3, 4), [-1, -7, -1])):
        result = aniso.group_cosine(x, torch.tensor(ids, dtype=torch.int64))
        assert (result.rows, result.groups, len(result.per_group)) == (0, 0, 0)
        assert math.isnan(result.within) and math.isnan(result.between)


MEMORY = """
import resource, torch, aniso
torch.set_num_threads(2)
n, groups, d = 400_000, 200_000, 512
ids = torch.randperm(n) % groups
aniso.group_cosine(torch.randn(600, d), torch.zeros(600, dtype=torch.int64))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = aniso.group_cosine(torch.randn(1, d).expand(n, d), ids)
assert abs(result.within - 1) < 1e-12 and result.groups == groups
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def test_the_sums_of_many_groups_are_never_held(tmp_path):
    """Σx and Σx̂ of 2·10⁵ groups would be 1.6 GB; ids, walk and products are a few columns of n."""
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 * 8 * 400_000


def test_many_groups():
    n, groups = 400_000, 200_000
    ids = torch.randperm(n) % groups
    x = torch.randn(groups, 8)[ids] * (1 + torch.rand(n, 1))
    result = aniso.group_cosine(x, ids)
    assert result.groups == groups and (result.counts == 2).all()
    assert result.within == pytest.approx(1.0, abs=1e-6)
    assert result.between == pytest.approx(0.0, abs=1e-2)


def test_reads_arrays_of_other_kinds_and_gives_them_back():
    x = np.random.default_rng(0).standard_normal((60, 20)).astype(np.float32)
    ids = np.arange(60) // 7
    expected = reference.group_cosine(torch.tensor(x), torch.tensor(ids))
    for groups in (ids, ids.astype(np.int32), torch.tensor(ids), ids.astype(">i8")):
        result = aniso.group_cosine(x, groups)
        assert isinstance(result.per_group, np.ndarray) and result.ids.dtype == np.int64
        assert_cosines(result, expected, 60, 20)


@pytest.mark.parametrize(
    ("x", "groups", "mask", "words"),
    [
        (torch.zeros(3), torch.zeros(3, dtype=torch.int64), None, "shape [3]"),
        (torch.zeros(3, 4), torch.zeros(3), None, "groups is float32 [3]"),
        (torch.zeros(3, 4), torch.zeros(4, dtype=torch.int64), None, "int32 [3], one group"),
        (torch.zeros(3, 4), torch.zeros(3, 1, dtype=torch.int64), None, "groups is int64 [3, 1]"),
        (torch.zeros(3, 4), torch.zeros(3, dtype=torch.bool), None, "groups is bool [3]"),
        (torch.zeros(3, 4), np.array(["a", "b", "c"]), None, "groups has dtype <U1"),
        (torch.zeros(3, 4), [0, 1, 2], None, "groups is a list"),
        (torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), torch.ones(3), "float32 [3]"),
        (torch.full((3, 4), math.nan), torch.tensor([-1, 0, 0]), None, "the first is row 1"),
    ],
)
def test_bad_input_is_one_sentence(x, groups, mask, words):
    for function in (aniso.group_cosine, aniso.first_token_cosine):
        with pytest.raises(aniso.InputError) as caught:
            function(x, groups, mask=mask)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_rows_that_are_not_finite_may_lie_outside():
    x = torch.randn(6, 4)
    x[1], x[4, 2] = math.nan, math.inf
    kept, ids = (
        torch.tensor([1, 1, 1, 1, 0, 1], dtype=torch.bool),
        torch.tensor([0, -1, 0, 1, 1, 1]),
    )
    result = aniso.group_cosine(x, ids, mask=kept)
    assert result.counts.tolist() == [2, 2] and result.rows == 4


def test_op_refuses_what_does_not_fit():
    x = torch.randn(4, 3)
    with pytest.raises(aniso.InputError, match="names group 5, but the accumulators have 5"):
        run_op(x, torch.tensor([0, 5, 1, 1]), 5)
    with pytest.raises(aniso.InputError, match=r"index is int64 \[5\]; it must be int64 or int32"):
        run_op(x, torch.zeros(5, dtype=torch.int64), 5)
    with pytest.raises(aniso.InputError, match=r"mask is bool \[1\]"):
        run_op(x, torch.zeros(4, dtype=torch.int64), 5, torch.ones(1, dtype=torch.bool))
    runs, outputs = runs_and_outputs(x, torch.tensor([0, 0, 1, 1]), {"sums"})
    short = replace(runs, end=runs.end[:1])
    with pytest.raises(ValueError, match="of one length"):
        _native.group_moments_cpu(x, short.tensors(), outputs, 1.0, threads=1, isa=_native.isa)
    wrong = (*outputs[:2], outputs[2][:, :2].contiguous(), None, None, None)
    with pytest.raises(ValueError, match="accumulator of 6 float64"):
        _native.group_moments_cpu(x, runs.tensors(), wrong, 1.0, threads=1, isa=_native.isa)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("both", [False, True])
def test_opcheck(masked, both):
    x, ids = torch.randn(40, 24), torch.randint(-1, 5, (40,))
    mask = torch.rand(40) > 0.5 if masked else None
    counts, sums, unit_sums, square_norms = empty_sums(5, 24)
    outputs = (counts, sums if both else None, unit_sums, square_norms)
    torch.library.opcheck(group_moments_into, (x, mask, ids, *outputs))


def test_inside_a_fully_compiled_graph():
    outputs, ids = empty_sums(6, 32), torch.randint(6, (50,))

    @torch.compile(fullgraph=True)
    def layer(x):
        y = torch.relu(x) + 1
        torch.ops.aniso.group_moments(y, None, ids, *outputs)
        return y * 2

    rows = [torch.randn(50, 32) for _ in range(3)]
    for x in rows:
        layer(x)
    expected = reference_sums(torch.cat([torch.relu(x) + 1 for x in rows]), ids.repeat(3))
    counts, sums, unit_sums, square_norms = outputs
    assert_sums((counts, square_norms, sums, unit_sums, None, None), expected)


def test_select_backend_knows_the_op():
    chosen = aniso.select_backend("group_moments", torch.zeros(2, 2))
    assert chosen.name == f"cpu-{_native.isa}"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "d", "count"), [*SIZES, (20_011, 768, 30), (4000, 2050, 4000)])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_gpu_equals_reference(n, d, count, dtype, backend, monkeypatch):
    if backend == "triton":
        monkeypatch.setattr(_native, "has_cuda", False)
    elif not _native.has_cuda:
        pytest.fail("this build has no CUDA kernels; build it with nvcc on PATH")
    x, ids = spoiled(n, d, dtype), torch.randint(-1, count, (n,))
    outputs = tuple(t.cuda() for t in empty_sums(count, d))
    group_moments_into(x.cuda(), None, ids.cuda(), *outputs)
    counts, sums, unit_sums, square_norms = (t.cpu() for t in outputs)
    groups = int(ids.max()) + 1 if n else 0
    actual = (counts[:groups], square_norms[:groups], sums[:groups], unit_sums[:groups], None, None)
    assert_sums(actual, reference_sums(x, ids))
    runs = runs_of(ids.cuda(), None)
    counts, products, total = (t.cpu() for t in group_moments.group_products(x.cuda(), runs))
    cpu_counts, cpu_products, cpu_total = group_moments.group_products(x, runs_of(ids, None))
    assert counts.tolist() == cpu_counts.tolist()
    close(products, cpu_products, max(n, 1) * d)
    close(total, cpu_total, max(n, 1))


@pytest.mark.parametrize("parts", [1, 3])
def test_state_with_groups_equals_the_function(parts, tmp_path):
    torch.manual_seed(parts)
    x, ids = torch.randn(300, 20) + 0.5, torch.randint(-1, 12, (300,)) * 1_000_003
    x[5], ids[5] = 0, 0
    mask = torch.rand(300) > 0.2
    mask[5] = True
    pieces = [slice(i * 300 // parts, (i + 1) * 300 // parts) for i in range(parts)]
    states = []
    for piece in pieces:
        states.append(aniso.LayerState(20, gram=False, groups=True))
        states[-1].update(x[piece], mask[piece], ids[piece])
    merged = states[0]
    for state in states[1:]:
        merged = merged + state
    merged.save(tmp_path / "a.state.safetensors")
    loaded = aniso.LayerState.load(tmp_path / "a.state.safetensors")
    expected = aniso.group_cosine(x, ids, mask=mask)
    for found in (merged.group_cosine(), loaded.group_cosine()):
        assert (found.rows, found.zero_rows, found.groups) == (
            expected.rows,
            expected.zero_rows,
            expected.groups,
        )
        for name in ("ids", "counts", "per_group", "intra_similarity"):
            assert torch.allclose(
                getattr(found, name).double(), getattr(expected, name).double(), equal_nan=True
            )
        for name in ("within", "within_mean", "between"):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12)
    merged.reset()
    assert merged.group_cosine().groups == 0


def test_state_updates_grow_groups_in_place():
    state = aniso.LayerState(4, groups=True)
    for ids in ([3, 1], [1, 7], [0, 3]):
        state.update(torch.randn(2, 4), groups=torch.tensor(ids))
    assert state.group_cosine().ids.tolist() == [0, 1, 3, 7]
    assert state.group_cosine().counts.tolist() == [1, 2, 2, 1]
    with pytest.raises(InputError, match="keeps groups, but none are given"):
        state.update(torch.randn(2, 4))
    with pytest.raises(InputError, match="keeps no groups"):
        aniso.LayerState(4).update(torch.randn(2, 4), groups=torch.tensor([0, 1]))
    with pytest.raises(InputError, match="keeps no groups"):
        aniso.LayerState(4).group_cosine()
    with pytest.raises(InputError, match="cannot merge"):
        state.merge(aniso.LayerState(4))
