from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import about_origin, assert_moments, close, spoiled
from safetensors.torch import load_file, save_file

import aniso
from aniso import reference
from aniso.state import Block, Sources


def state_of(x, **options):
    state = aniso.LayerState(x.shape[1], **options)
    state.update(x)
    return state


# Rows of float32 are rounded to 39 bits of the largest in their block, which differs.
DIGITS = 2.0**-36


def assert_same(a, b, n, tolerance=None):
    assert_moments(a.moments, b.moments)
    if a.grams is not None:
        mine, theirs = about_origin(a), about_origin(b)
        for name in ("gram_raw", "gram_unit", "gram_totals"):
            close(mine[name], theirs[name], n, name, tolerance)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=4), seed=st.integers(0, 99))
def test_state_of_a_union_is_the_sum_of_states_in_any_order(cuts, seed):
    torch.manual_seed(seed)
    x = spoiled(60, 13, torch.float32)
    whole = state_of(x)
    pieces = [state_of(p) for p in x.tensor_split(sorted(cuts))]
    order = torch.randperm(len(pieces)).tolist()
    total = pieces[order[0]]
    for i in order[1:]:
        total = total + pieces[i]
    assert_same(total, whole, 60, DIGITS)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99))
def test_order_of_rows_does_not_matter(seed):
    torch.manual_seed(seed)
    x = spoiled(50, 9, torch.float16)
    assert_same(state_of(x[torch.randperm(50)]), state_of(x), 50)


@settings(max_examples=20, deadline=None)
@given(exponent=st.integers(-100, 100))
def test_cosines_do_not_depend_on_scale(exponent):
    x = torch.randn(40, 8, dtype=torch.float64) + 0.5
    plain, scaled = state_of(x).compute(), state_of(x * 2.0**exponent).compute()
    for key in ("mean_cosine", "var_cosine", "von_neumann_entropy", "rankme", "isoscore"):
        assert scaled.metrics[key] == pytest.approx(plain.metrics[key], rel=1e-12)


def test_merge_changes_neither_operand():
    a, b = state_of(torch.randn(20, 5)), state_of(torch.randn(30, 5))
    before = {k: t.clone() for k, t in a.state_dict().items()}
    a.merge(b)
    assert all(torch.equal(before[k], t) for k, t in a.state_dict().items())


def test_update_takes_batches_of_sequences_with_masks():
    x, mask = torch.randn(4, 6, 8), torch.rand(4, 6) > 0.4
    state = aniso.LayerState(8)
    state.update(x, mask)
    expected = reference.row_moments(x.reshape(-1, 8), mask.reshape(-1))
    assert_moments(state.moments, expected)


@pytest.mark.parametrize("shape", [(6, 4), (24,), (4, 6, 1), (4, 1)])
def test_a_mask_of_another_shape_is_refused(shape):
    with pytest.raises(aniso.InputError, match="without its last axis"):
        aniso.LayerState(8).update(torch.randn(4, 6, 8), torch.ones(shape, dtype=torch.bool))


def test_save_and_load(tmp_path):
    state = aniso.LayerState(7)
    state.update(spoiled(30, 7, torch.float32), block=Block("a.npy@1", 0, 30))
    state.save(tmp_path / "s.safetensors", layer="encoder.0")
    loaded = aniso.LayerState.load(tmp_path / "s.safetensors")
    assert all(torch.equal(t, loaded.state_dict()[k]) for k, t in state.state_dict().items())
    assert loaded.sources == state.sources
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_same_block_never_counts_twice():
    x = torch.randn(10, 3)
    first, second = aniso.LayerState(3), aniso.LayerState(3)
    first.update(x, block=Block("f", 0, 10))
    second.update(x[5:], block=Block("f", 5, 10))
    with pytest.raises(aniso.InputError, match="rows 5 to 10 of source f would count twice"):
        first + second
    before = first.moments.sums.clone()
    with pytest.raises(aniso.InputError, match="count twice"):
        first.update(x, block=Block("f", 9, 19))
    assert torch.equal(first.moments.sums, before)


def test_sources_join_and_round_trip():
    sources = Sources()
    for start, stop in ((20, 30), (0, 10), (10, 20), (40, 50)):
        sources = sources.add(Block("f", start, stop))
    assert sources.ranges == {"f": ((0, 30), (40, 50))}
    assert (sources.rows_done("f"), sources.rows_done("g")) == (30, 0)
    assert Sources.from_json(sources.to_json()) == sources


def test_reset_forgets_in_place():
    state = state_of(torch.randn(10, 4))
    sums = state.moments.sums
    state.reset()
    assert state.moments.sums is sums
    assert_same(state, aniso.LayerState(4), 1)


def test_refusals(tmp_path):
    state = state_of(torch.randn(10, 4))
    with pytest.raises(aniso.InputError, match="rows have 5 columns"):
        state.update(torch.randn(3, 5))
    with pytest.raises(aniso.InputError, match="cannot merge"):
        state.merge(aniso.LayerState(4, gram=False))
    for other in (state, None, [1]):
        with pytest.raises(aniso.InputError, match="cannot merge a state with"):
            state.merge(other)
    with pytest.raises(aniso.InputError, match="leave them out"):
        aniso.LayerState(10**8)
    with pytest.raises(aniso.InputError, match="dim is 0"):
        aniso.LayerState(0)
    with pytest.raises(aniso.InputError, match="there is no state file"):
        aniso.LayerState.load(tmp_path / "none")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(aniso.InputError, match="is no aniso state"):
        aniso.LayerState.load(tmp_path / "other.safetensors")


def test_newer_schema_and_damage_are_refused(tmp_path):
    path = tmp_path / "s.safetensors"
    state_of(torch.randn(10, 4)).save(path)
    meta = {"kind": "aniso.LayerState", "schema": "99", "sources": json.dumps({})}
    tensors = load_file(path)
    save_file(tensors, tmp_path / "new.safetensors", meta)
    with pytest.raises(aniso.InputError, match="schema 99"):
        aniso.LayerState.load(tmp_path / "new.safetensors")
    tensors.pop("counts")
    save_file(tensors, tmp_path / "less.safetensors", {**meta, "schema": "1"})
    with pytest.raises(aniso.InputError, match="not those of dim 4"):
        aniso.LayerState.load(tmp_path / "less.safetensors")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(aniso.InputError, match="cannot be read as safetensors"):
        aniso.LayerState.load(path)
