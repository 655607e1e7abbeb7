from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import aniso
from aniso import reference
from aniso.metrics.sequence_spectra import SEQUENCE_METRICS
from aniso.state import Block

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
LENGTHS = torch.tensor([7, 1, 0, 12, 7, 3, 12, 2, 7])


def sequences(dtype=torch.float64, dim=10):
    return (torch.randn(len(LENGTHS), 12, dim) + 0.5).to(dtype)


def right(lengths=LENGTHS, tokens=12):
    return torch.arange(tokens) < lengths[:, None]


def assert_equal(spectra, x, kept):
    expected = reference.sequence_spectra(x, kept, torch.as_tensor(spectra.edges))
    for i, truth in enumerate(expected):
        sigma = truth["singular_values"]
        assert spectra.tokens[i] == kept[i].sum()
        found = spectra.singular_values[i]
        assert torch.allclose(found[: len(sigma)], sigma, rtol=1e-6, atol=1e-7)
        assert found[len(sigma) :].isnan().all()
        for key in SEQUENCE_METRICS:
            value = truth.get(key, math.nan)
            assert float(spectra.metrics[key][i]) == pytest.approx(value, rel=1e-5, nan_ok=True)
        if "cdf" in truth:
            assert torch.equal(spectra.cdf[i], truth["cdf"])
        else:
            assert spectra.cdf[i].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [5, 40])
def test_equals_reference(dtype, dim):
    x = sequences(dtype, dim)
    assert_equal(aniso.sequence_spectra(x, lengths=LENGTHS), x, right())


@pytest.mark.parametrize("padding", [0.0, 1e30, math.nan, math.inf])
def test_padding_on_any_side_never_enters(padding):
    x = sequences()
    plain = aniso.sequence_spectra(x, lengths=LENGTHS)
    for kept, moved in ((right(), x), (right().flip(1), x.flip(1))):
        padded = torch.where(kept[:, :, None], moved, padding)
        found = aniso.sequence_spectra(padded, mask=kept)
        for key in SEQUENCE_METRICS:
            torch.testing.assert_close(found.metrics[key], plain.metrics[key], equal_nan=True)
    holes = torch.rand(len(x), 12) > 0.4
    padded = torch.where(holes[:, :, None], x, padding)
    assert_equal(aniso.sequence_spectra(padded, mask=holes), x, holes)


def test_blocks_of_a_length_add_up(monkeypatch):
    import importlib

    module = importlib.import_module("aniso.metrics.sequence_spectra")
    x = sequences()
    whole = aniso.sequence_spectra(x)
    monkeypatch.setattr(module, "_BATCH_ELEMENTS", 250)
    assert_equal(aniso.sequence_spectra(x), x, torch.ones(len(x), 12, dtype=torch.bool))
    torch.testing.assert_close(aniso.sequence_spectra(x).cdf, whole.cdf)


def test_sequences_without_a_spectrum():
    x = torch.zeros(3, 4, 6)
    x[0, 0] = 1.0
    spectra = aniso.sequence_spectra(x, lengths=torch.tensor([1, 3, 0]))
    assert spectra.metrics["sv_median_ratio"].isnan().tolist() == [False, True, True]
    assert spectra.metrics["sv_skewness"].isnan().all()
    assert spectra.metrics["explained_variance_10"][0] == 1.0
    assert spectra.cdf[0, -1] == 1.0 and spectra.cdf[0, 0] == 0.0
    empty = aniso.sequence_spectra(torch.zeros(0, 4, 6))
    assert empty.singular_values.shape == (0, 4) and empty.cdf.shape == (0, 257)


def test_a_batch_of_spectra_is_that_of_a_layer_each():
    from aniso.metrics import spectrum

    x = sequences(dim=40)
    spectra = aniso.sequence_spectra(x)
    for i, sigma in enumerate(spectra.singular_values):
        found = [float(spectra.metrics[key][i]) for key in SEQUENCE_METRICS]
        expected = [spectrum.sv_skewness(sigma), spectrum.sv_median_ratio(sigma)]
        expected += [spectrum.explained_variance(sigma, k) for k in (1, 3, 10)]
        assert found == pytest.approx(expected, rel=1e-9)


def test_numpy_in_numpy_out():
    x = sequences().numpy()
    spectra = aniso.sequence_spectra(x, lengths=LENGTHS.numpy())
    arrays = (spectra.tokens, spectra.singular_values, spectra.cdf, *spectra.metrics.values())
    assert all(isinstance(a, np.ndarray) for a in arrays)


def test_thousands_of_ragged_sequences_in_one_call():
    lengths = torch.randint(0, 25, (3000,))
    x = torch.randn(3000, 24, 8)
    spectra = aniso.sequence_spectra(x, lengths=lengths)
    assert torch.equal(spectra.tokens, lengths)
    for i in range(0, 3000, 100):
        true = torch.linalg.svdvals(x[i, : lengths[i]].double())
        found = spectra.singular_values[i, : len(true)]
        torch.testing.assert_close(found.double(), true, rtol=1e-6, atol=1e-6)


def filled(x, **padding):
    state = aniso.SequenceState()
    state.update(x, **padding)
    return state


def test_summary_counts_means_and_histograms():
    x = sequences()
    x[3] = 0.0
    spectra = aniso.sequence_spectra(x, lengths=LENGTHS)
    summary = filled(x, lengths=LENGTHS).compute()
    counts = (summary.sequences, summary.empty, summary.single, summary.zero, summary.tokens)
    assert counts == (9, 1, 1, 1, int(LENGTHS.sum()))
    for key in SEQUENCE_METRICS:
        values = spectra.metrics[key]
        values = values[~values.isnan()]
        found = summary.metrics[key]
        assert found.sequences == len(values) == (6 if key == "sv_skewness" else 7)
        assert found.mean == pytest.approx(float(values.mean()), rel=1e-12)
        assert found.std == pytest.approx(float(values.std(unbiased=False)), abs=1e-7)
        assert (found.min, found.max) == (values.min(), values.max())
        expected, edges = np.histogram(values.numpy(), bins=found.edges.numpy())
        assert found.counts.tolist() == expected.tolist() and len(edges) == 257
        assert (found.below, found.above) == (0, 0)
    torch.testing.assert_close(summary.cdf, spectra.cdf.nanmean(dim=0))


def test_values_outside_the_bins_are_counted_beside():
    # One σ of 1200 stands out: a skewness near √1200.
    x = torch.eye(1200, dtype=torch.float64)[None] * 1e-3
    x[0, 0, 0] = 1.0
    summary = filled(x).compute().metrics["sv_skewness"]
    assert (summary.above, int(summary.counts.sum())) == (1, 0) and summary.max > 28


def test_merge_of_parts_is_the_whole_and_survives_a_file(tmp_path):
    x = sequences()
    whole = filled(x, lengths=LENGTHS)
    first = filled(x[:4], mask=right()[:4], block=Block("f", 0, 4))
    second = filled(x[4:], mask=right()[4:], block=Block("f", 4, 9))
    first.save(tmp_path / "s.safetensors")
    merged = aniso.SequenceState.load(tmp_path / "s.safetensors") + second
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, whole.state_dict()[name])
    assert merged.sources.ranges == {"f": ((0, 9),)}
    with pytest.raises(aniso.InputError, match="count twice"):
        merged.merge(first)
    merged.reset()
    assert merged.compute().sequences == 0 and math.isnan(merged.compute().cdf[0])
    assert math.isnan(merged.compute().metrics["sv_skewness"].min)
    merged.update(x[:0])
    assert merged.compute().sequences == 0


def test_tokens_that_are_not_finite_are_left_out_by_the_state_and_counted():
    x = sequences()
    x[0, 2, 3] = math.nan
    x[1, 5, 0] = math.inf
    kept = right()
    state = filled(x, mask=kept)
    kept[0, 2] = False
    clean = filled(x, mask=kept)
    assert state.compute().nonfinite_tokens == 1 and clean.compute().nonfinite_tokens == 0
    assert torch.equal(state.tallies.sums, clean.tallies.sums)
    with pytest.raises(aniso.InputError, match="token 2 of sequence 0 has NaN"):
        aniso.sequence_spectra(x, lengths=LENGTHS)


def test_refusals(tmp_path):
    x = sequences()
    with pytest.raises(aniso.InputError, match="sequences are"):
        aniso.sequence_spectra(x[0])
    with pytest.raises(aniso.InputError, match="x is int64"):
        aniso.sequence_spectra(x.long())
    with pytest.raises(aniso.InputError, match="pass one of them"):
        aniso.sequence_spectra(x, lengths=LENGTHS, mask=right())
    with pytest.raises(aniso.InputError, match=r"mask is int64 \[9, 12\]; it must be bool"):
        aniso.sequence_spectra(x, mask=right().long())
    with pytest.raises(aniso.InputError, match=r"lengths are int64 \[8\]"):
        aniso.sequence_spectra(x, lengths=LENGTHS[1:])
    with pytest.raises(aniso.InputError, match=r"lengths\[3\] is 13; sequences have 0 to 12"):
        aniso.sequence_spectra(x, lengths=LENGTHS.clone().index_fill(0, torch.tensor([3]), 13))
    state = filled(x)
    for other in (state, aniso.LayerState(3)):
        with pytest.raises(aniso.InputError, match="cannot merge a state with"):
            state.merge(other)
    aniso.LayerState(3).save(tmp_path / "layer.safetensors")
    with pytest.raises(aniso.InputError, match="holds an aniso"):
        aniso.SequenceState.load(tmp_path / "layer.safetensors")
