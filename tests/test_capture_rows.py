"""The op that a hook calls: moments and Grams of a layer in one, on tensors of a fixed place."""

from __future__ import annotations

import pytest
import torch
from rows import DTYPES, assert_moments, close, spoiled

import aniso
from aniso import reference
from aniso.moments import Grams, RowMoments
from aniso.ops import capture_rows_into


def arguments(x, mask, *, gram=True):
    dim = x.shape[-1]
    grams = Grams.zeros(dim).tensors() if gram else ()
    return (x, mask, *RowMoments.zeros(dim).tensors(), *grams)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_reference(dtype, masked):
    """Batches of sequences, twice: the pilot comes from the first rows alone."""
    x = spoiled(60, 17, dtype).reshape(4, 15, 17)
    mask = torch.rand(4, 15) < 0.7 if masked else None
    state = aniso.LayerState(17)
    state.add(x, mask)
    pilot = state.grams.pilot.clone()
    state.add(x, mask)
    assert torch.equal(state.grams.pilot, pilot) and bool(pilot.any())
    rows = torch.cat([x.flatten(0, 1)] * 2)
    keep = None if mask is None else torch.cat([mask.flatten()] * 2)
    assert_moments(state.moments, reference.row_moments(rows, keep), dtype)
    whole = aniso.LayerState(17)
    whole.update(x, mask)
    whole.update(x, mask)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, state.state_dict()[name]), name
    finite = rows.isfinite().all(dim=1)
    finite = finite if keep is None else finite & keep
    counts = (state.moments.rows, state.moments.directions)
    raw = state.grams.about(torch.zeros(2, 17, dtype=torch.float64), counts).raw
    tolerance = 2.0**-15 if dtype in (torch.float16, torch.bfloat16) else 2.0**-36
    close(raw, reference.gram(rows[finite]), len(rows), "raw", tolerance)


def test_heads_are_columns_of_a_wider_output():
    x = torch.randn(3, 5, 24)
    state, alone = aniso.LayerState(8), aniso.LayerState(8)
    state.add(x[..., 8:16], None)
    alone.update(x[..., 8:16].contiguous())
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, state.state_dict()[name]), name


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(gram, masked):
    x = torch.randn(2, 3, 5)
    mask = torch.tensor([[True, True, False]] * 2) if masked else None
    torch.library.opcheck(capture_rows_into, arguments(x, mask, gram=gram))


def test_other_widths_are_refused_by_the_fake_implementation():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), pytest.raises(RuntimeError, match="differ in d"):
        capture_rows_into(torch.randn(2, 3, 5), None, *RowMoments.zeros(6).tensors())
