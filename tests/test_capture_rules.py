"""Which rows a capture leaves out, and how it groups, plans and places what it keeps."""

from __future__ import annotations

import json

import pytest
import torch
from rows import about_origin, assert_moments, close
from test_modalities import bert, t5, vit
from torch import nn

import aniso
from aniso import reference
from aniso._capture_run import capture_texts
from aniso.cli import main
from aniso.models import CaptureOptions, packaged_model
from aniso.models.layer_sums import far_rows
from aniso.models.memory import parse_bytes
from aniso.state import rows_that_wait


class Blocks(nn.Module):
    """Two blocks that pass their rows on."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(2))
        for block in self.blocks:
            nn.init.eye_(block.weight)

    def forward(self, x, attention_mask=None, input_ids=None):
        for block in self.blocks:
            x = block(x)
        return x


def run_on(calls, **options):
    model = Blocks()
    with torch.no_grad(), aniso.capture(model, "blocks.1", **options) as run:
        for call in calls:
            model(**call)
    return run


def call(rows=40, sinks=(3, 17)):
    """Rows of norms near 2.4, sinks of 1,000 times that, the last two rows padding."""
    x = torch.randn(2, rows // 2, 6)
    for sink in sinks:
        x.view(-1, 6)[sink] *= 1000
    mask = torch.ones(2, rows // 2)
    mask[:, -1] = 0
    ids = torch.arange(rows).reshape(2, -1) % 7
    return {"x": x, "attention_mask": mask, "input_ids": ids}


def test_outliers_have_sums_of_their_own():
    calls = [call(), call(sinks=(0,))]
    run = run_on(calls, max_norm_multiple=30)
    keep = torch.cat([c["attention_mask"].flatten().bool() for c in calls])
    rows = torch.cat([c["x"].flatten(0, 1) for c in calls])
    far = rows.norm(dim=1) > 100
    metrics = run.compute()["blocks.1"]
    assert metrics.counts["outlier_rows"] == int((far & keep).sum()) == 3
    assert (metrics.counts["masked_rows"], metrics.counts["excluded_rows"]) == (4, 0)
    assert metrics.counts["rows"] == 80 - 4 - 3
    (left,) = run.left_out.values()
    assert left.moments.rows == 3
    for kept, found in ((keep & ~far, metrics.metrics), (keep, metrics.metrics_of_all)):
        expected = aniso.LayerState(6)
        expected.update(rows, kept)
        for key, value in expected.compute().metrics.items():
            near = pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True)
            assert found[key] == near, key
    assert metrics.metrics["mean_norm"] < 5 < metrics.metrics_of_all["mean_norm"]


def test_without_the_rule_nothing_is_left_out():
    run = run_on([call()])
    metrics = run.compute()["blocks.1"]
    assert metrics.metrics_of_all is None and "outlier_rows" not in metrics.counts
    assert run.left_out == {} and run.sketches == {}


def test_what_one_call_leaves_out_depends_on_no_other():
    calls = [call(), call(sinks=(0,)), call(sinks=())]
    whole = run_on(calls, max_norm_multiple=30)
    parts = [run_on([c], max_norm_multiple=30) for c in calls]
    for name in ("states", "left_out"):
        total = sum_of([getattr(part, name)["blocks.1"] for part in parts])
        found = getattr(whole, name)["blocks.1"]
        assert_moments(found.moments, total.moments)


def sum_of(states):
    total = states[0]
    for state in states[1:]:
        total = total + state
    return total


@pytest.mark.parametrize(
    "hidden",
    [torch.zeros(2, 0, 6), torch.zeros(2, 3, 6), torch.full((2, 3, 6), float("nan"))],
    ids=["none", "zero", "not finite"],
)
def test_no_median_no_outlier(hidden):
    counted = torch.ones(hidden.shape[:-1], dtype=torch.bool)
    assert not far_rows(hidden, counted, 2.0).any()
    assert not far_rows(hidden, ~counted, 2.0).any()


def test_tokens_left_out_by_id_have_both_numbers():
    calls = [call(sinks=())]
    run = run_on(calls, exclude_token_ids=[0, 3], max_norm_multiple=1e6)
    keep = calls[0]["attention_mask"].flatten().bool()
    named = torch.isin(calls[0]["input_ids"].flatten(), torch.tensor([0, 3]))
    rows = calls[0]["x"].flatten(0, 1)
    metrics = run.compute()["blocks.1"]
    assert metrics.counts["excluded_rows"] == int((named & keep).sum())
    assert_moments_of(run.left_out["blocks.1"], rows, named & keep)
    assert_moments_of(run.states["blocks.1"], rows, keep & ~named)
    everything = aniso.LayerState(6)
    everything.update(rows, keep)
    expected = everything.compute().metrics
    assert metrics.metrics_of_all["mean_cosine"] == pytest.approx(expected["mean_cosine"])
    assert metrics.metrics["mean_cosine"] != pytest.approx(expected["mean_cosine"], rel=1e-3)


def assert_moments_of(state, rows, keep):
    assert_moments(state.moments, reference.row_moments(rows, keep))


@pytest.mark.parametrize("kind", ["token_ids", "sentence", "position"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_groups_are_those_of_the_rows(kind, side):
    """Over two calls; positions count from the first token that is no padding."""
    calls = [call(sinks=()), call(rows=24, sinks=())]
    rows, groups, sentence = [], [], 0
    for c in calls:
        if side == "left":
            c["attention_mask"] = c["attention_mask"].flip(1)
        for x, ids, keep in zip(c["x"], c["input_ids"], c["attention_mask"].bool(), strict=True):
            count = int(keep.sum())
            found = {
                "token_ids": ids[keep],
                "sentence": torch.full((count,), sentence),
                "position": torch.arange(count),
            }
            rows.append(x[keep])
            groups.append(found[kind])
            sentence += 1
    run = run_on(calls, groups=kind)
    expected = aniso.group_cosine(torch.cat(rows), torch.cat(groups))
    found = run.group_cosine()["blocks.1"]
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.counts.tolist() == expected.counts.tolist()
    assert torch.allclose(found.per_group, expected.per_group, atol=1e-9)
    assert found.between == pytest.approx(expected.between, abs=1e-9)


def test_groups_of_models():
    """A decoder's tokens have ids of their own; an image's patches have none."""
    model, inputs = t5()
    with torch.no_grad(), aniso.capture(model.eval(), groups="token_ids", gram=False) as run:
        model(**inputs)
    cosines = run.group_cosine()
    for name, prefix in (("encoder.block.1", ""), ("decoder.block.1", "decoder_")):
        keep = inputs[f"{prefix}attention_mask"].bool()
        ids = inputs[f"{prefix}input_ids"][keep].unique()
        assert cosines[name].ids.tolist() == ids.tolist()
    model, inputs = vit()
    sentence = "called without input_ids"
    with (
        aniso.capture(model.eval(), groups="token_ids"),
        pytest.raises(aniso.InputError, match=sentence),
    ):
        model(**inputs)
    with torch.no_grad(), aniso.capture(model, groups="position") as run:
        model(**inputs)
    assert run.group_cosine()["layers.1"].ids.tolist() == list(range(5))
    with pytest.raises(aniso.InputError, match="keeps no groups"):
        run_on([call()]).group_cosine()


def test_memory_is_what_the_states_take():
    model, inputs = bert()
    run = aniso.capture(model, sites=("residual", "keys"), max_norm_multiple=5)
    (planned,) = run.memory.bytes_by_device.values()
    with torch.no_grad(), run:
        model(**inputs)
    states = [*run.finished().values(), *run.left_out.values()]
    taken = sum(tensor.nbytes for state in states for tensor in state.state_dict().values())
    waiting = sum(8 * state.dim * rows_that_wait(state.dim, "cpu") for state in states)
    assert planned == taken + waiting
    assert str(run.memory).startswith("states of 3 × ") and " on cpu " in str(run.memory)


def test_a_budget_picks_what_fits():
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(2)))
    x = torch.randn(40, 512) * torch.logspace(0, -2, 512)
    full = aniso.capture(model, memory="1GiB")
    assert full.memory.kind.gram and full.memory.kind == full.memory.wanted
    with torch.no_grad(), full:
        model(x)
    with torch.no_grad(), aniso.capture(model, memory="4MB") as run:
        model(x)
    kind, (size,) = run.memory.kind, run.memory.bytes_by_device.values()
    assert kind.sketch == 128 and not kind.gram and size <= 4e6
    assert "sketch of 128 directions" in str(run.memory) and "do not fit" in str(run.memory)
    taken = sum(
        t.nbytes
        for states in (run.finished(), run.sketches)
        for state in states.values()
        for t in state.state_dict().values()
    )
    assert size == taken
    for name, sketch in run.sketches.items():
        exact = full.states[name].principal_axes(3).singular_values
        axes = sketch.principal_axes(3)
        assert bool((axes.lower <= exact).all()) and bool((exact <= axes.upper).all())
        assert torch.allclose(axes.singular_values, exact, rtol=1e-3)
    least = aniso.capture(model, memory=100_000)
    assert not least.memory.kind.gram and not least.memory.kind.sketch
    with pytest.raises(aniso.InputError, match="memory is 1 kB, but moments alone need"):
        aniso.capture(model, memory="1kB")


@pytest.mark.parametrize(
    ("text", "size"), [(7, 7), ("4GiB", 2**32), ("500MB", 5e8), ("1.5 tb", 1.5e12), ("2Kib", 2048)]
)
def test_amounts_of_memory(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "many", "-4GB", "0", "4 parsecs", "1.2.3GB"])
def test_amounts_that_are_none(text):
    with pytest.raises(aniso.InputError, match="pass bytes, or a text such as 4GiB"):
        parse_bytes(text)


def test_states_of_several_devices_are_merged():
    """One state per layer and device; here both are the CPU's, for want of another device."""
    parts = [call(), call(sinks=(0,))]
    runs = [run_on([part], max_norm_multiple=30) for part in parts]
    (first,), (second,) = (run._sums["blocks.1"] for run in runs)
    assert first.fits(torch.empty(3, 6)) and not first.fits(torch.empty(3, 6, device="meta"))
    both = run_on(parts, max_norm_multiple=30)
    runs[0]._sums["blocks.1"].append(second)
    joined, whole = runs[0].compute()["blocks.1"], both.compute()["blocks.1"]
    assert joined.counts == whole.counts
    for name in ("metrics", "metrics_of_all"):
        for key, value in getattr(whole, name).items():
            near = pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True)
            assert getattr(joined, name)[key] == near, key
    state = runs[0].finished()["blocks.1"]
    expected = about_origin(both.finished()["blocks.1"])["gram_raw"]
    close(about_origin(state)["gram_raw"], expected, 80, "raw", 2.0**-36)
    assert first.state.moments.rows < state.moments.rows


def test_a_submodule_called_by_itself_is_no_call_of_the_model():
    model = Blocks()
    with torch.no_grad(), aniso.capture(model) as run:
        model.blocks[0](torch.randn(3, 6))
    with pytest.raises(aniso.InputError, match="was not called"):
        run.compute()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_norm_multiple": 1.0}, "max_norm_multiple is 1.0"),
        ({"max_norm_multiple": float("nan")}, "max_norm_multiple is nan"),
        ({"groups": "words"}, "groups is 'words'"),
        ({"memory": "all"}, "memory is 'all'"),
    ],
)
def test_refusals_are_one_sentence(options, words):
    with pytest.raises(aniso.InputError, match=words):
        aniso.capture(Blocks(), **options)
    quiet = nn.Sequential(nn.ReLU(), nn.ReLU())
    with pytest.raises(aniso.InputError, match="width of 0 shows only when it runs"):
        aniso.capture(quiet, ["0"], memory="1GB")


def test_the_command_line_reports_both_numbers_groups_and_sites(
    minilm, demo_texts, tmp_path, capsys
):
    text = tmp_path / "texts.txt"
    text.write_text("\n".join(demo_texts[:8]))
    arguments = ["--model", str(packaged_model()), "--text", str(text), "--layers", "5"]
    more = ["--sites", "residual,attention", "--max-norm-multiple", "1.05", "--groups", "position"]
    more += ["--exclude-token-id", "1996", "--save", str(tmp_path / "dump"), "--memory", "1GB"]
    with pytest.raises(SystemExit) as ended:
        main(["capture", *arguments, *more, "--out", str(tmp_path / "out"), "--json"])
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert json.loads(shown.err.splitlines()[0])["memory"].startswith("states of 2 × ")
    attention, block = json.loads(shown.out)["layers"]
    assert (attention["site"], block["site"], block["layer"]) == ("attention", "residual", 5)
    assert attention["name"] == "encoder.layer.4.attention.output.dense"
    assert list(aniso.open_dump(tmp_path / "dump").layers) == [attention["name"], block["name"]]
    assert block["counts"]["outlier_rows"] > 0 and block["counts"]["excluded_rows"] > 0
    assert block["metrics_of_all"]["mean_cosine"] != block["metrics"]["mean_cosine"]
    assert block["grouped_by"] == "position" and -1 <= block["groups"]["within"] <= 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "With the rows that were left out" in page and "Left out by token id" in page
    assert "A group is all rows of one position in the text." in page
    with pytest.raises(SystemExit) as ended:
        main(["capture", *arguments, "--memory", "4MB", "--max-norm-multiple", "10"])
    assert ended.value.code == 0
    assert "memory: states of 1 × " in capsys.readouterr().err


def test_the_command_line_bounds_what_a_sketch_has_not_seen(minilm, demo_texts):
    exact, sketched = (
        capture_texts(minilm, demo_texts[:8], {}, options, progress=False)
        for options in (CaptureOptions([5]), CaptureOptions([5], memory="1MB"))
    )
    (name,) = exact.layers
    found = sketched.facts[name]["sketch"]
    assert found["size"] == 128 and "rankme" not in sketched.layers[name].metrics
    for k in (1, 3, 10):
        lower, upper = found[f"explained_variance_{k}"]
        value = exact.layers[name].metrics[f"explained_variance_{k}"]
        assert lower - 1e-6 <= value <= upper + 1e-6 and upper - lower < 0.2
