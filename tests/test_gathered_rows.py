"""Rows of short calls wait for one another before they are multiplied."""

from __future__ import annotations

import pytest
import torch
from rows import about_origin, close
from torch import nn

import aniso
from aniso.state import GatheredState, rows_that_wait

DIM, LIMIT = 40, 20


@pytest.fixture
def calls(monkeypatch):
    """Rows of every addition to a LayerState."""
    found = []
    add = aniso.LayerState.add

    def counted(self, x, mask):
        found.append(x.shape[:-1].numel())
        add(self, x, mask)

    monkeypatch.setattr(aniso.LayerState, "add", counted)
    return found


def gathered(**options):
    return GatheredState(aniso.LayerState(DIM, **options))


def assert_same(state, blocks):
    """The sums of (rows, mask) in one addition each; their rounding is noted, and another."""
    whole = aniso.LayerState(DIM)
    for x, mask in blocks:
        whole.update(x, mask)
    expected, found = about_origin(whole), about_origin(state)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if name == "gram_noise":
            continue
        close(found[name], tensor, len(tensor), name, 1e-9)
    assert torch.equal(state.moments.counts, whole.moments.counts)


@pytest.mark.parametrize("masked", [False, True])
def test_short_calls_are_added_together(calls, masked):
    assert rows_that_wait(DIM, "cpu") == LIMIT and rows_that_wait(DIM, "cuda") == 0
    blocks = []
    gathering = gathered()
    for k in range(9):
        x = torch.randn(1, 7, DIM) + 1
        x[0, 2] = 0
        mask = torch.rand(1, 7) < 0.6 if masked and k % 2 else None
        gathering.add(x, mask)
        blocks.append((x, mask))
    assert calls == [14, 14, 14, 14]
    assert_same(gathering.state, blocks)


def test_what_waits_is_in_the_state_that_is_asked_for(calls):
    gathering, x = gathered(), torch.randn(12, DIM)
    gathering.add(x[:5], None)
    assert calls == [] and gathering.state.moments.rows == 5
    gathering.add(x[5:], None)
    assert_same(gathering.state, [(x[:5], None), (x[5:], None)])
    assert gathering.state.moments.rows == 12


def test_long_calls_do_not_wait(calls):
    gathering = gathered()
    gathering.add(torch.randn(4, DIM), None)
    gathering.add(torch.randn(2, LIMIT // 2 + 1, DIM), None)
    assert calls == [4, LIMIT + 2]
    assert gathering.state.moments.rows == 4 + LIMIT + 2


def test_without_gram_nothing_waits(calls):
    gathered(gram=False).add(torch.randn(3, DIM), None)
    assert calls == [3]


def test_rows_are_kept_as_they_were():
    gathering, x = gathered(), torch.randn(3, DIM)
    mask = torch.tensor([True, False, True])
    before = x.clone(), mask.clone()
    gathering.add(x, mask)
    x.zero_()
    mask.fill_(True)
    assert_same(gathering.state, [before])


def test_rows_of_another_dtype_begin_anew(calls):
    gathering = gathered()
    x = torch.randn(3, DIM)
    gathering.add(x, None)
    gathering.add(x.double(), None)
    assert gathering.state.moments.rows == 6 and calls == [3, 3]


def test_calls_without_rows_do_not_pile_up(calls):
    gathering = gathered()
    for _ in range(5):
        gathering.add(torch.randn(0, DIM), None)
    assert gathering.state.moments.rows == 0 and calls == []


def test_rows_that_cannot_be_added_are_refused_at_once():
    model = nn.Sequential(nn.Linear(DIM, DIM), nn.Identity())
    model[1].register_forward_hook(lambda module, args, output: output.int())
    with (
        pytest.raises(aniso.InputError, match="int32"),
        aniso.capture(model, layers=["1"]) as run,
    ):
        model(torch.randn(2, DIM))
    with pytest.raises(aniso.InputError):
        run.compute()


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_sums_that_were_broken_off_are_given_to_nobody(monkeypatch, error):
    gathering = gathered()
    gathering.add(torch.randn(3, DIM), None)

    def fail(self, x, mask):
        raise error

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(aniso.LayerState, "add", fail)
        _ = gathering.state
    gathering.add(torch.randn(3, DIM), None)
    for _ in range(2):
        with pytest.raises(aniso.InputError, match=r"adding 3 rows was broken off.*start again"):
            _ = gathering.state


@pytest.mark.parametrize("rule", [{}, {"max_norm_multiple": 2.0}])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_capture_of_many_short_calls(rule, mode):
    model = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(inplace=True), nn.Linear(DIM, DIM))
    inputs = [torch.randn(1, 5, DIM) for _ in range(11)]
    layers = ["0", "2"]
    with mode(), aniso.capture(model, layers=layers, **rule) as run:
        for x in inputs:
            model(x)
    with torch.no_grad(), aniso.capture(model, layers=layers, **rule) as one_by_one:
        for x in inputs:
            model(x)
            assert one_by_one.states["0"].moments.rows  # asked for: what waits is added
    for name, metrics in run.compute().items():
        expected = one_by_one.compute()[name]
        assert metrics.counts == expected.counts and metrics.counts["rows"] > 30
        for key, value in metrics.metrics.items():
            assert value == pytest.approx(expected.metrics[key], rel=1e-6), (name, key)
