from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import aniso
from aniso.state.row_sample import hash_keys


def sample_of(x, size=10, seed=0, **options):
    sample = aniso.RowSample(size, x.shape[1], seed=seed)
    sample.update(x, **options)
    return sample


def assert_same(a, b):
    assert torch.equal(a.rows, b.rows) and torch.equal(a.keys, b.keys)
    assert (a.seen, a.seen_rows, a.design) == (b.seen, b.seen_rows, b.design)


def splitmix(start, name):
    word = (1 << 64) - 1
    z = (start + name * 0x9E3779B97F4A7C15) & word
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
    return z ^ (z >> 31)


def test_keys_are_splitmix64():
    names = torch.tensor([0, 1, 2, 10**12, 2**63 - 1, -5])
    keys = hash_keys(names, 3, "a.npy").tolist()
    zero = hash_keys(torch.tensor([0]), 3, "a.npy").item() % 2**64
    start = next_start(zero)
    assert [k % 2**64 for k in keys] == [splitmix(start, n) for n in names.tolist()]
    assert set(keys).isdisjoint(hash_keys(names, 4, "a.npy").tolist())
    assert set(keys).isdisjoint(hash_keys(names, 3, "b.npy").tolist())


def next_start(key):
    """The start of the stream, from its value at 0: every step of SplitMix64 can be undone."""
    word = (1 << 64) - 1
    z = key
    for bits, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        x = z
        for _ in range(3):
            x = z ^ (x >> bits)
        z = x * pow(factor, -1, 1 << 64) & word
    return z


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 80), max_size=4), seed=st.integers(0, 99))
def test_order_and_blocks_do_not_matter(cuts, seed):
    torch.manual_seed(seed)
    x, ids = torch.randn(80, 3), torch.randint(0, 2**62, (80,))
    whole = sample_of(x, ids=ids)
    order = torch.randperm(80)
    streamed = aniso.RowSample(10, 3)
    parts = []
    for piece in order.tensor_split(sorted(cuts)):
        streamed.update(x[piece], ids=ids[piece])
        parts.append(sample_of(x[piece], ids=ids[piece]))
    merged = parts[-1]
    for part in parts[:-1]:
        merged = merged + part
    assert_same(streamed, whole)
    assert_same(merged, whole)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99))
def test_documents_are_drawn_whole_in_any_order(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, 30)
    labels = np.repeat(rng.permutation(1000)[:30], lengths)
    x = torch.arange(1, len(labels) + 1, dtype=torch.float64)[:, None]
    whole = sample_of(x, 20, documents=labels)
    streamed = aniso.RowSample(20, 1)
    for document in rng.permutation(np.unique(labels)):
        streamed.update(x[labels == document], documents=labels[labels == document])
    assert_same(streamed, whole)
    drawn = labels[whole.rows[:, 0].long().numpy() - 1]
    for document in np.unique(drawn):
        assert (drawn == document).sum() == (labels == document).sum()
    assert 20 <= len(drawn) < 20 + lengths.max()
    assert whole.documents.max() + 1 == len(np.unique(drawn)) == whole.design.units
    assert (whole.seen, whole.seen_rows) == (30, len(labels))
    assert whole.design.blocks == math.ceil(20 / lengths.max()) // 2


def test_every_row_and_every_pair_is_as_likely():
    x = torch.arange(1, 21, dtype=torch.float64)[:, None]
    hits, together = np.zeros(20), np.zeros((20, 20))
    for seed in range(4000):
        drawn = sample_of(x, 5, seed=seed).rows[:, 0].long().numpy() - 1
        hits[drawn] += 1
        together[np.ix_(drawn, drawn)] += 1
    assert hits.sum() == 20_000
    pairs = together[np.triu_indices(20, 1)]
    # Without replacement both spread a little less than independent counts would.
    assert scipy.stats.chisquare(hits).pvalue > 1e-3
    assert scipy.stats.chisquare(pairs).pvalue > 1e-3


def test_consecutive_ids_of_two_sources_are_drawn_independently():
    names = torch.arange(100_000)
    a, b = hash_keys(names, 0, "a").double(), hash_keys(names, 0, "b").double()
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.02


def test_rows_without_direction_are_no_part_of_it():
    x = torch.randn(30, 4)
    x[3], x[4, 1], x[5, 2], x[6, 0] = 0, math.nan, math.inf, -math.inf
    mask = torch.ones(30, dtype=torch.bool)
    mask[7:10] = False
    sample = sample_of(x, 100, ids=torch.arange(30), mask=mask)
    keep = torch.tensor([i for i in range(30) if not 3 <= i < 10])
    assert sample.seen == 23 and sample.design.exact
    assert torch.equal(sample.rows.sort(dim=0).values, x[keep].sort(dim=0).values)
    assert_same(sample, sample_of(x[keep], 100, ids=keep))


@pytest.mark.parametrize("documents", [False, True])
def test_blocks_with_rows_left_out_count_as_the_whole_does(documents):
    x = torch.randn(600, 4)
    x[::7], x[3::11, 1], x[5::13, 2] = 0, math.nan, math.inf
    mask, names = torch.rand(600) > 0.2, torch.arange(600) // (3 if documents else 1)
    key = "documents" if documents else "ids"
    whole = sample_of(x, 20, mask=mask, **{key: names})
    streamed = aniso.RowSample(20, 4)
    for start in range(0, 600, 60):
        block = slice(start, start + 60)
        streamed.update(x[block], mask=mask[block], **{key: names[block]})
    assert_same(streamed, whole)
    good = mask & torch.isfinite(x).all(dim=1) & (x != 0).any(dim=1)
    assert whole.seen_rows == int(good.sum()) and whole.seen == len(names[good].unique())
    assert torch.isfinite(whole.rows).all() and (whole.rows != 0).any(dim=1).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_rows_whose_squares_leave_float32_count(scale):
    x = torch.randn(30, 4) * scale
    x[3] = 0
    assert sample_of(x, 100).seen == 29


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_rows_keep_their_dtype_and_kinds_of_arrays_are_taken(dtype):
    x = torch.randn(40, 4).to(dtype)
    sample = sample_of(x)
    assert sample.rows.dtype == dtype
    assert (sample + aniso.RowSample(10, 4)).rows.dtype == dtype
    if dtype != torch.bfloat16:
        assert_same(sample_of(x.numpy()), sample)


def test_merge_changes_neither_operand_and_counts_all():
    a, b = sample_of(torch.randn(20, 3), source="a"), sample_of(torch.randn(30, 3), source="b")
    before = a.rows.clone(), a.keys.clone()
    merged = a + b
    assert torch.equal(a.rows, before[0]) and torch.equal(a.keys, before[1])
    assert (merged.seen, len(merged.rows)) == (50, 10)
    assert merged.design.population == 50


def test_save_and_load(tmp_path):
    labels = torch.arange(50) // 7
    sample = sample_of(torch.randn(50, 3), 20, seed=5, documents=labels)
    sample.save(tmp_path / "rows.state.safetensors", layer="encoder.0")
    loaded = aniso.RowSample.load(tmp_path / "rows.state.safetensors")
    assert_same(loaded, sample)
    more = torch.randn(9, 3), torch.full((9,), 99)
    for each in (loaded, sample):
        each.update(more[0], documents=more[1])
    assert_same(loaded, sample)
    with pytest.raises(aniso.InputError, match="holds an aniso"):
        aniso.LayerState.load(tmp_path / "rows.state.safetensors")
    aniso.LayerState(3).save(tmp_path / "sums.state.safetensors")
    with pytest.raises(aniso.InputError, match="holds an aniso"):
        aniso.RowSample.load(tmp_path / "sums.state.safetensors")


def test_refusals_leave_the_sample_as_it_was():
    x = torch.randn(20, 3)
    sample = sample_of(x, ids=torch.arange(20))
    again = sample_of(x, ids=torch.arange(20))
    for options, message in (
        ({"ids": torch.arange(20)}, "in the sample already"),
        ({"documents": torch.arange(20)}, "cannot be drawn into one sample"),
        ({"ids": torch.zeros(20, dtype=torch.int64)}, "ids repeat"),
        ({"ids": torch.randn(20)}, "must be integers"),
        ({"ids": torch.arange(19)}, "must be integers"),
        ({"ids": torch.arange(20), "documents": torch.arange(20)}, "one or the other"),
        ({"mask": torch.ones(19, dtype=torch.bool)}, "must be bool"),
    ):
        with pytest.raises(aniso.InputError, match=message):
            sample.update(x, **options)
        assert_same(sample, again)
    with pytest.raises(aniso.InputError, match="rows have 4 columns"):
        sample.update(torch.randn(2, 4))
    with pytest.raises(aniso.InputError, match="in the sample already"):
        sample.merge(again)
    for other in (aniso.RowSample(11, 3), aniso.RowSample(10, 3, seed=1), None):
        with pytest.raises(aniso.InputError, match="must agree"):
            sample.merge(other)
    with pytest.raises(aniso.InputError, match="cannot be drawn into one sample"):
        sample.merge(sample_of(x, documents=torch.arange(20)))
    with pytest.raises(aniso.InputError, match="size is 0"):
        aniso.RowSample(0, 3)


def test_a_document_in_two_updates_is_refused():
    sample = sample_of(torch.randn(6, 3), documents=torch.tensor([1, 1, 2, 2, 3, 3]))
    with pytest.raises(aniso.InputError, match="documents come whole"):
        sample.update(torch.randn(2, 3), documents=torch.tensor([3, 4]))
