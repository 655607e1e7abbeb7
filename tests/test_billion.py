"""The billion-row bench, scaled down: answers lie inside their stated errors, wrong ones do not."""

import billion
import pytest
import torch


@pytest.fixture(scope="module")
def streamed():
    return billion.stream(1_000_000)


def test_every_answer_is_inside_its_stated_error(streamed):
    state, decades = streamed
    found = billion.answers(state)
    assert [answer for answer in found if not answer.inside] == []
    assert found[0].found == 1_000_000
    assert [decade.rows for decade in decades] == [1_000_000]
    assert decades[0].nanoseconds_per_row > 0


def test_answers_of_other_rows_are_outside(streamed, monkeypatch):
    values = billion.magnitudes()
    values[3] *= 1.5
    monkeypatch.setattr(billion, "magnitudes", lambda: values)
    outside = {answer.name for answer in billion.answers(streamed[0]) if not answer.inside}
    assert outside >= {"mean_norm", "mean_cosine", "var_cosine", "Σσ²/N", "largest error of σ²/N"}


def test_rows_have_the_stated_signs_and_magnitudes():
    first, second = (block.clone() for block in billion.blocks(2 * billion.BLOCK_ROWS))
    assert torch.equal(first.abs(), billion.magnitudes().expand_as(first))
    assert bool((first[:, 0] > 0).all())
    share = (first[:, 1:] > 0).double().mean(0)
    assert float((share - 0.5).abs().max()) < 6 * 0.5 / billion.BLOCK_ROWS**0.5
    flipped = (first != second).double().mean(0)
    assert set(flipped.tolist()) == {0.0, 1.0}
