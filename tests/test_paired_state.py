from __future__ import annotations

import json
import math
from sys import modules

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import DTYPES, assert_moments, close, spoiled
from safetensors.torch import load_file, save_file

import aniso
from aniso import reference
from aniso.metrics.hsic import HsicSums
from aniso.state import Block


def related(n, dx=20, dy=9, dtype=torch.float64):
    """Two sources that share six latent directions."""
    latent = torch.randn(n, 6, dtype=torch.float64)
    x = latent @ torch.randn(6, dx, dtype=torch.float64) + torch.randn(n, dx)
    y = latent @ torch.randn(6, dy, dtype=torch.float64) + torch.randn(n, dy)
    return x.to(dtype), y.to(dtype)


def spoiled_pair(n, dx=13, dy=5, dtype=torch.float32):
    return spoiled(n, dx, dtype), spoiled(n, dy, dtype).roll(2, dims=0)


def state_of(x, y, mask=None):
    state = aniso.PairedState(x.shape[-1], y.shape[-1])
    state.update(x, y, mask)
    return state


def assert_same(a, b, n):
    """Equal sums; a's are taken about b's origins first."""
    moved = a.sums.about(b.sums.origin_x, b.sums.origin_y)
    assert_moments(moved.moments_x, b.sums.moments_x, torch.float64)
    assert_moments(moved.moments_y, b.sums.moments_y, torch.float64)
    expected = b.sums.tensors()
    for name, tensor in moved.tensors().items():
        if name.startswith("unit"):
            close(tensor, expected[name], n, name)
    for name in ("xx", "xy", "yy"):
        assert_same_hsic(getattr(moved, name), getattr(b.sums, name), n)


def assert_same_hsic(a, b, n):
    """Equal to the rounding of a sum of magnitudes, which about a mean is far above the sum."""
    _, aa, bb, aabb = b.scalars.tolist()
    tolerance = 64 * math.sqrt(n) * torch.finfo(torch.float64).eps
    sizes = {
        "scalars": aabb + aa + bb + n,
        "sum_a": math.sqrt(n * aa),
        "sum_b": math.sqrt(n * bb),
        "weighted_a": math.sqrt(aabb * bb),
        "weighted_b": math.sqrt(aabb * aa),
        "cross": math.sqrt(aa * bb),
    }
    for name, size in sizes.items():
        error = float((getattr(a, name) - getattr(b, name)).abs().max())
        assert error <= tolerance * size, name


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=4), seed=st.integers(0, 99))
def test_state_of_a_union_is_the_sum_of_states_in_any_order(cuts, seed):
    torch.manual_seed(seed)
    x, y = spoiled_pair(60)
    mask = torch.rand(60) > 0.2
    pieces = [
        state_of(*piece)
        for piece in zip(*(t.tensor_split(sorted(cuts)) for t in (x, y, mask)), strict=True)
    ]
    order = torch.randperm(len(pieces)).tolist()
    total = pieces[order[0]]
    for i in order[1:]:
        total = total + pieces[i]
    whole = state_of(x, y, mask)
    assert_same(total, whole, 60)
    assert total.compute().debiased_cka == pytest.approx(whole.compute().debiased_cka, rel=1e-11)
    assert total.compute().rsa_pearson == pytest.approx(whole.compute().rsa_pearson, rel=1e-11)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99))
def test_order_of_rows_does_not_matter(seed):
    torch.manual_seed(seed)
    x, y = spoiled_pair(50, dtype=torch.float16)
    order = torch.randperm(50)
    assert_same(state_of(x[order], y[order]), state_of(x, y), 50)


def test_rows_in_small_blocks_are_the_same_rows(monkeypatch):
    x, y = related(300)
    whole = state_of(x, y)
    monkeypatch.setattr(modules["aniso.state.paired_state"], "_BLOCK_ELEMENTS", 200)
    parts = state_of(x, y)
    assert not torch.equal(parts.sums.origin_x, whole.sums.origin_x)
    assert_same(parts, whole, 300)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "dx", "dy"), [(4, 3, 2), (63, 257, 5), (257, 20, 40), (500, 7, 7)])
def test_rsa_and_cka_equal_reference(n, dx, dy, dtype):
    x, y = related(n, dx, dy, dtype)
    found = state_of(x, y).compute()
    assert found.rows == n
    assert found.rsa_pearson == pytest.approx(reference.rsa_pearson(x, y), rel=1e-10, abs=1e-12)
    assert found.debiased_cka == pytest.approx(reference.debiased_cka(x, y), rel=1e-10, abs=1e-12)


# The variance of cosines of mean 1 − δ is some δ²/d, a difference of sums of magnitude 1.
@pytest.mark.parametrize(("target", "tolerance"), [(0.5, 1e-12), (0.9, 1e-11), (0.999, 1e-8)])
def test_rsa_does_not_cancel_at_a_high_mean_cosine(target, tolerance):
    x, y = related(400)
    spread = math.sqrt((1 - target) / target)
    x, y = (t / t.norm(dim=1).mean() * spread + torch.eye(len(t[0]))[0] for t in (x, y))
    found = state_of(x, y).compute()
    for side in (found.metrics_a, found.metrics_b):
        assert side.metrics["mean_cosine"] == pytest.approx(target, abs=0.2 * (1 - target))
    assert found.rsa_pearson == pytest.approx(reference.rsa_pearson(x, y), rel=tolerance)
    assert 0.1 < found.rsa_pearson < 0.95


@pytest.mark.parametrize("offset", [1.0, 100.0, 1e5])
def test_cka_does_not_cancel_under_a_common_offset(offset):
    x, y = related(300)
    exact = reference.debiased_cka(x, y)
    rogue_x, rogue_y = x.clone(), y + 3 * offset
    rogue_x[:, 4] += 100 * offset
    found = state_of(rogue_x, rogue_y).compute().debiased_cka
    assert found == pytest.approx(exact, abs=1e-13 * max(1, 100 * offset))
    # By kernels of the rows as they are, the same number is lost.
    if offset == 100:
        assert abs(reference.debiased_cka(rogue_x, rogue_y) / exact - 1) > 1e-6


def test_cka_bears_a_first_block_that_is_far_off():
    x, y = related(400)
    x[0], y[0] = x[0] + 1000, y[0] - 1000
    whole = state_of(x, y)
    state = state_of(x[:1], y[:1])
    state.update(x[1:], y[1:])
    assert state.compute().debiased_cka == pytest.approx(whole.compute().debiased_cka, abs=1e-9)


def test_only_rows_good_in_both_count():
    x, y = related(60)
    x[3], y[4], x[5, 2], y[6, 1] = 0, 0, math.nan, math.inf
    mask = torch.arange(60) != 50
    state = state_of(x, y, mask)
    expected = {"rows": 57, "zero_rows": 2, "nonfinite_rows": 2, "masked_rows": 1}
    found = state.compute()
    assert found.metrics_a.counts == found.metrics_b.counts == expected
    a, b = reference.kept_pairs(x, y, mask)
    assert found.debiased_cka == pytest.approx(reference.debiased_cka(a, b), rel=1e-12)
    assert found.rsa_pearson == pytest.approx(reference.rsa_pearson(a, b), rel=1e-12)
    assert found.metrics_a.metrics["drift_norm"] == pytest.approx(float(a.mean(0).norm()))
    both = (a != 0).any(1) & (b != 0).any(1)
    mean, var = reference.cosine_mean_var(b[both])
    assert found.metrics_b.metrics["mean_cosine"] == pytest.approx(mean)
    assert found.metrics_b.metrics["var_cosine"] == pytest.approx(var)


def test_too_few_rows_and_rows_that_do_not_differ_have_no_number():
    x, y = related(50)
    for n, rsa, cka in ((0, False, False), (2, False, False), (3, True, False), (4, True, True)):
        found = state_of(x[:n], y[:n]).compute()
        assert (math.isfinite(found.rsa_pearson), math.isfinite(found.debiased_cka)) == (rsa, cka)
    same = torch.full((50, 7), 0.1)
    found = state_of(same, y).compute()
    assert math.isnan(found.rsa_pearson) and math.isnan(found.debiased_cka)
    # One row off: the kernel is zero outside its diagonal, and so is its HSIC.
    same[9] = 3.0
    assert math.isnan(state_of(same, y).compute().debiased_cka)


def test_scales_of_float32_leave_the_numbers_alone():
    x, y = related(80, dtype=torch.float32)
    plain, scaled = state_of(x, y).compute(), state_of(x * 2.0**-100, y * 2.0**100).compute()
    assert scaled.debiased_cka == pytest.approx(plain.debiased_cka, rel=1e-13)
    assert scaled.rsa_pearson == pytest.approx(plain.rsa_pearson, rel=1e-13)


def test_update_takes_batches_of_sequences_with_masks():
    x, y, mask = torch.randn(4, 6, 8), torch.randn(4, 6, 3), torch.rand(4, 6) > 0.4
    flat = state_of(x.reshape(-1, 8), y.reshape(-1, 3), mask.reshape(-1))
    assert_same(state_of(x, y, mask), flat, 24)


def test_merge_changes_neither_operand_and_empty_states_are_neutral():
    a, b = state_of(*related(20)), state_of(*related(30))
    before = {k: t.clone() for k, t in a.state_dict().items()}
    a.merge(b)
    assert all(torch.equal(before[k], t) for k, t in a.state_dict().items())
    empty = aniso.PairedState(20, 9)
    for total in (empty + a, a + empty):
        assert_same(total, a, 20)
        assert torch.equal(total.sums.origin_x, a.sums.origin_x)


def test_moved_sums_are_the_sums_of_moved_rows():
    def sums(a, b):
        aa, bb = (a**2).sum(1), (b**2).sum(1)
        scalars = torch.stack([torch.tensor(float(len(a))), aa.sum(), bb.sum(), (aa * bb).sum()])
        return HsicSums(scalars.double(), a.sum(0), b.sum(0), bb @ a, aa @ b, a.T @ b)

    a, b = related(30)
    t, u = torch.randn(20, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    assert_same_hsic(sums(a, b).moved(t, u), sums(a + t, b + u), 30)


def test_save_and_load(tmp_path):
    x, y = spoiled_pair(30)
    state = aniso.PairedState(13, 5)
    state.update(x, y, block=Block("a.npy@1 b.npy@2", 0, 30))
    state.save(tmp_path / "s.safetensors", layer="encoder.0")
    loaded = aniso.PairedState.load(tmp_path / "s.safetensors")
    assert all(torch.equal(t, loaded.state_dict()[k]) for k, t in state.state_dict().items())
    assert loaded.sources == state.sources
    with pytest.raises(aniso.InputError, match=r"rows 0 to 30 of source .* would count twice"):
        loaded + state


def test_refusals(tmp_path):
    state = state_of(torch.randn(10, 4), torch.randn(10, 3))
    with pytest.raises(aniso.InputError, match="rows have 3 and 4 columns, this state has dims 4"):
        state.update(torch.randn(3, 3), torch.randn(3, 4))
    with pytest.raises(aniso.InputError, match=r"x has shape \[3, 4\], y \[2, 3\]; paired rows"):
        state.update(torch.randn(3, 4), torch.randn(2, 3))
    with pytest.raises(aniso.InputError, match=r"mask \[2\]; paired rows"):
        state.update(torch.randn(3, 4), torch.randn(3, 3), torch.ones(2, dtype=torch.bool))
    for other in (state, None, aniso.LayerState(4)):
        with pytest.raises(aniso.InputError, match="cannot merge a state with"):
            state.merge(other)
    with pytest.raises(aniso.InputError, match="both must have the same"):
        state.merge(aniso.PairedState(4, 4))
    with pytest.raises(aniso.InputError, match="dims are 0 and 3"):
        aniso.PairedState(0, 3)
    with pytest.raises(aniso.InputError, match="which cannot be had"):
        aniso.PairedState(10**8, 10**8)
    aniso.LayerState(4).save(tmp_path / "layer.safetensors")
    with pytest.raises(aniso.InputError, match=r"holds an aniso\.LayerState; load it with"):
        aniso.PairedState.load(tmp_path / "layer.safetensors")


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "s.safetensors"
    state_of(torch.randn(10, 4), torch.randn(10, 3)).save(path)
    with pytest.raises(aniso.InputError, match=r"holds an aniso\.PairedState"):
        aniso.LayerState.load(path)
    meta = {"kind": "aniso.PairedState", "schema": "1", "sources": json.dumps({})}
    tensors = load_file(path)
    tensors.pop("xy.cross")
    save_file(tensors, path, meta)
    with pytest.raises(aniso.InputError, match="not those of dims"):
        aniso.PairedState.load(path)
    tensors.pop("origin_x")
    save_file(tensors, path, meta)
    with pytest.raises(aniso.InputError, match="has no origins"):
        aniso.PairedState.load(path)


@pytest.mark.gpu
def test_gpu_equals_cpu():
    x, y = spoiled_pair(500, 65, 33, torch.bfloat16)
    state = aniso.PairedState(65, 33, device="cuda")
    state.update(x, y)
    found, expected = state.compute(), state_of(x, y).compute()
    assert found.debiased_cka == pytest.approx(expected.debiased_cka, rel=1e-12)
    assert found.rsa_pearson == pytest.approx(expected.rsa_pearson, rel=1e-12)
