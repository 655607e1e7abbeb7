"""The billion-row bench, scaled down: answers lie inside their stated errors, wrong ones do not."""

import json

import billion
import pytest
import torch


@pytest.fixture(scope="module")
def streamed():
    return billion.stream(1_000_000)


def test_every_answer_is_inside_its_stated_error_when_norms_vary():
    state = billion.stream(200_000, 2.0).state
    assert [answer for answer in billion.answers(state, 2.0) if not answer.inside] == []
    outside = {answer.name for answer in billion.answers(state, 1.0) if not answer.inside}
    assert outside >= {"mean_norm", "Σσ²/N"}


def test_every_answer_is_inside_its_stated_error(streamed):
    found = billion.answers(streamed.state)
    assert [answer for answer in found if not answer.inside] == []
    assert found[0].found == 1_000_000
    assert [decade.rows for decade in streamed.decades] == [1_000_000]
    assert streamed.decades[0].nanoseconds_per_row > 0


def test_answers_of_other_rows_are_outside(streamed, monkeypatch):
    values = billion.magnitudes()
    values[3] *= 1.5
    monkeypatch.setattr(billion, "magnitudes", lambda: values)
    outside = {answer.name for answer in billion.answers(streamed.state) if not answer.inside}
    assert outside >= {"mean_norm", "mean_cosine", "var_cosine", "Σσ²/N", "largest error of σ²/N"}


@pytest.mark.parametrize("norm_ratio", [1.0, 2.0])
def test_rows_have_the_stated_signs_and_magnitudes(norm_ratio):
    source = billion.Rows(norm_ratio)
    first, second = (source.block(i).clone() for i in (0, 1))
    values = billion.scaled_magnitudes(norm_ratio)
    assert torch.equal(first.abs(), values.repeat(billion.BLOCK_ROWS // billion.SCALES, 1))
    assert bool((first[:, 0] > 0).all())
    share = (first[:, 1:] > 0).double().mean(0)
    assert float((share - 0.5).abs().max()) < 6 * 0.5 / billion.BLOCK_ROWS**0.5
    flipped = (first != second).double().mean(0)
    assert set(flipped.tolist()) == {0.0, 1.0}


def test_norms_vary_and_neighbours_differ():
    norms = billion.scaled_magnitudes(2.0).double().norm(dim=1)
    assert float(norms.max() / norms.min()) > 1.99
    assert float((norms[1:] / norms[:-1]).log().abs().min()) > 0.1
    assert len(billion.scaled_magnitudes(1.0).unique(dim=0)) == 1


@pytest.mark.parametrize("norm_ratio", [1.0, 2.0])
def test_closed_forms_are_means_over_signs(norm_ratio):
    """Every pair of rows, with the chance of the signs averaged out by hand."""
    rows = billion.SCALES + 3
    values = billion.scaled_magnitudes(norm_ratio).double()
    x = torch.cat([values, values[:3]])
    norms = x.norm(dim=1)
    units = x / norms[:, None]
    off = ~torch.eye(rows, dtype=torch.bool)
    means = torch.outer(units[:, 0], units[:, 0])[off]
    squares = (units.square() @ units.square().T)[off]
    known = billion.expected(rows, norm_ratio)
    assert known.mean_norm == pytest.approx(float(norms.mean()), rel=1e-12)
    assert known.mean_cosine == pytest.approx(float(means.mean()), rel=1e-12)
    variance = float(squares.mean() - means.mean().square())
    assert known.var_cosine == pytest.approx(variance, rel=1e-9)
    assert torch.allclose(known.second_moments, x.square().mean(0), rtol=1e-12, atol=0)


def test_an_interrupted_run_goes_on_to_the_same_state(tmp_path, monkeypatch):
    rows, saved = 5 * billion.BLOCK_ROWS - 480, tmp_path / "s.state.safetensors"
    whole = billion.stream(rows)
    block, asked = billion.Rows.block, []

    def interrupt(self, i, *count):
        asked.append(i)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return block(self, i, *count)

    monkeypatch.setattr(billion.Rows, "block", interrupt)
    with pytest.raises(KeyboardInterrupt):
        billion.stream(rows, saved=saved)
    assert billion.Run.load(saved).rows == 3 * billion.BLOCK_ROWS
    again = billion.stream(rows, saved=saved)
    assert asked == [0, 1, 2, 3, 3, 4]
    assert again.decades[0].rows_since == rows
    for name, tensor in whole.state.state_dict().items():
        assert torch.equal(tensor, again.state.state_dict()[name]), name


def test_the_command_writes_its_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["billion", "--rows", "3e5", "--out", str(tmp_path)])
    billion.main()
    facts = json.loads((tmp_path / "billion-300000-1.json").read_text())
    assert facts["rows"] == 300_000 and all(answer["inside"] for answer in facts["answers"])
    assert [path.name for path in tmp_path.iterdir()] == ["billion-300000-1.json"]
    assert "to        300,000 rows" in capsys.readouterr().out
