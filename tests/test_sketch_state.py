from __future__ import annotations

import functools
import math
import pickle

import pytest
import torch

import aniso
from aniso.state import Block


def decaying(n=600, d=200, ratio=0.8, offset=0.0):
    """Rows with singular values of a geometric decay, about an offset."""
    left = torch.linalg.qr(torch.randn(n, d, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64))[0]
    return (left * ratio ** torch.arange(d)) @ right.T + offset * torch.randn(d)


def state_of(x, size=40, **options):
    state = aniso.SketchState(x.shape[1], size, **options)
    state.update(x)
    return state


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(("ratio", "offset"), [(0.8, 0.0), (0.8, 1.0), (0.97, 0.3), (1.0, 0.0)])
def test_true_values_lie_within_the_bounds(ratio, offset, center):
    x = decaying(ratio=ratio, offset=offset)
    axes = state_of(x).principal_axes(10, center=center)
    true = torch.linalg.svdvals(x - x.mean(0) * int(center))[:10]
    assert (axes.lower <= true).all() and (true <= axes.upper).all()
    assert (axes.lower <= axes.singular_values).all()
    energy = float(((x - x.mean(0) * int(center)) ** 2).sum())
    seen = float((state_of(x).principal_axes(40, center=center).singular_values ** 2).sum())
    assert axes.missing == pytest.approx(1 - seen / energy, abs=1e-9)
    assert axes.scatter == pytest.approx(float(((x - x.mean(0)) ** 2).sum()), rel=1e-9)


def test_bounds_are_narrow_where_the_spectrum_decays_and_wide_where_not():
    narrow, wide = (state_of(decaying(ratio=r)).principal_axes(5) for r in (0.7, 1.0))
    assert (narrow.upper - narrow.lower < 1e-3 * narrow.upper).all()
    assert (wide.upper > 2 * wide.lower).all() and wide.missing > 0.5


def test_vectors_and_coordinates_are_those_of_an_svd():
    x = decaying(ratio=0.6, offset=2.0)
    axes = state_of(x).principal_axes(4, center=True)
    u, _, vh = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    signs = (axes.components * vh[:4]).sum(1)
    assert torch.allclose(signs.abs(), torch.ones(4).double(), atol=1e-8)
    assert torch.allclose(axes.left(x), u[:, :4] * signs, atol=1e-6)


def test_error_estimate_is_near_the_error():
    x = decaying(ratio=0.97)
    ratios = []
    for seed in range(20):
        state = state_of(x, size=20, seed=seed)
        axes = state.principal_axes(20)
        vectors, values = axes.components, axes.singular_values**2
        sketch = (vectors.T * values) @ vectors
        error = torch.linalg.matrix_norm(x.T @ x - sketch) / torch.linalg.matrix_norm(sketch)
        ratios.append((axes.error_estimate / float(error)) ** 2)
    # Unbiased; the mean of 20 estimates from 10 probes each.
    assert 0.8 < sum(ratios) / len(ratios) < 1.2


def test_rows_below_the_size_are_exact():
    x = torch.randn(7, 300, dtype=torch.float64) + 3
    axes = state_of(x).principal_axes(9)
    true = torch.linalg.svdvals(x)
    assert torch.allclose(axes.singular_values[:7], true, rtol=1e-10)
    assert (axes.singular_values[7:] < 1e-6 * true[0]).all() and axes.missing < 1e-10
    zero = state_of(torch.zeros(5, 30), size=6).principal_axes(2)
    assert zero.singular_values.tolist() == [0.0, 0.0] and zero.upper.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_merge_of_parts_is_the_whole_and_survives_a_file(tmp_path, dtype, monkeypatch):
    import aniso.state.sketch_state as module

    x = decaying(offset=1.0).to(dtype)
    whole = state_of(x).principal_axes(6, center=True)
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 5000)
    parts = [aniso.SketchState(200, 40) for _ in range(3)]
    parts[0].update(x[:100], block=Block("f", 0, 100))
    parts[1].update(x[100:], block=Block("f", 100, 600))
    parts[0].save(tmp_path / "s.safetensors")
    # In the middle a state without rows, whose pilot is none.
    merged = parts[2] + (aniso.SketchState.load(tmp_path / "s.safetensors") + parts[1])
    axes = merged.principal_axes(6, center=True)
    assert merged.rows == 600 and merged.sources.ranges == {"f": ((0, 600),)}
    for name in ("singular_values", "lower", "upper", "mean"):
        torch.testing.assert_close(getattr(axes, name), getattr(whole, name), rtol=1e-7, atol=1e-9)
    with pytest.raises(aniso.InputError, match="count twice"):
        merged.merge(parts[1])


def test_sketches_sent_by_ranks_merge_into_that_of_all_rows():
    """As torch.distributed.gather_object sends them: pickled."""
    x = decaying(offset=1.0)
    sent = [pickle.dumps(state_of(x[rank::3])) for rank in range(3)]
    merged = functools.reduce(aniso.SketchState.merge, map(pickle.loads, sent))
    axes, whole = (state.principal_axes(6) for state in (merged, state_of(x)))
    assert merged.rows == 600
    torch.testing.assert_close(axes.singular_values, whole.singular_values, rtol=1e-7, atol=1e-9)


def test_masked_and_nonfinite_rows_are_left_out_and_counted():
    x = decaying(100, 30)
    spoiled, mask = x.clone(), torch.rand(100) > 0.3
    spoiled[5, 3], mask[5] = math.nan, True
    state = aniso.SketchState(30, 8)
    state.update(spoiled, mask)
    clean = mask.clone()
    clean[5] = False
    expected = state_of(x[clean], size=8).principal_axes(3)
    torch.testing.assert_close(state.principal_axes(3).singular_values, expected.singular_values)
    assert state.sums.counts.tolist() == [int(clean.sum()), 1, int((~mask).sum())]


def test_refusals(tmp_path):
    with pytest.raises(aniso.InputError, match="dim is 4, size 5"):
        aniso.SketchState(4, 5)
    state = state_of(torch.randn(10, 4), size=2)
    with pytest.raises(aniso.InputError, match="rows have 5 columns"):
        state.update(torch.randn(3, 5))
    with pytest.raises(aniso.InputError, match="k is 3; a sketch of size 2"):
        state.principal_axes(3)
    with pytest.raises(aniso.InputError, match="there are no rows yet"):
        aniso.SketchState(4, 2).principal_axes(1)
    for other in (aniso.SketchState(4, 2, seed=1), aniso.SketchState(4, 3)):
        with pytest.raises(aniso.InputError, match="of other random directions"):
            state.merge(other)
    for other in (state, None):
        with pytest.raises(aniso.InputError, match="cannot merge a state with"):
            state.merge(other)
    state.save(tmp_path / "s.safetensors")
    with pytest.raises(aniso.InputError, match="load it with aniso"):
        aniso.LayerState.load(tmp_path / "s.safetensors")
