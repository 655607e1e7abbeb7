from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from dump_helpers import rows, shared_cli, strict_json, write_npy, write_shard

import aniso
from aniso import reference
from aniso._compare_sources import compare_sources
from aniso.metrics import METRICS
from aniso.report import ComparisonReport

LAYERS = ["embeddings", "encoder.layer.0", "encoder.layer.1"]


def related(n, dx=20, dy=9):
    shared = torch.randn(n, 5, dtype=torch.float64)
    a = shared @ torch.randn(5, dx, dtype=torch.float64) + torch.randn(n, dx) + 0.5
    return a, shared @ torch.randn(5, dy, dtype=torch.float64) + torch.randn(n, dy)


def test_everything_equals_its_reference():
    a, b = related(150)
    found = aniso.compare(a, b)
    assert found.rows == 150
    assert found.rsa_pearson == pytest.approx(reference.rsa_pearson(a, b), rel=1e-12)
    assert found.debiased_cka == pytest.approx(reference.debiased_cka(a, b), rel=1e-12)
    expected = reference.layer_metrics(a), reference.layer_metrics(b)
    assert list(found.delta) == list(METRICS)
    for side, values in zip((found.metrics_a, found.metrics_b), expected, strict=True):
        assert side.metrics == pytest.approx(values, rel=1e-9, nan_ok=True)
    for key, change in found.delta.items():
        known = expected[1][key] - expected[0][key]
        size = abs(expected[0][key]) + abs(expected[1][key])
        assert change == pytest.approx(known, abs=1e-9 * size, nan_ok=True)


def test_a_mask_leaves_pairs_out():
    (a, b), mask = related(80), torch.rand(80) > 0.3
    a[~mask] = math.nan
    found, kept = aniso.compare(a, b, mask=mask), aniso.compare(a[mask], b[mask])
    assert found.rows == int(mask.sum())
    assert found.debiased_cka == pytest.approx(kept.debiased_cka, rel=1e-13)
    assert found.rsa_pearson == pytest.approx(kept.rsa_pearson, rel=1e-13)
    assert found.delta == pytest.approx(kept.delta, rel=1e-9, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_with_itself(dtype):
    x = torch.randn(90, 33).to(dtype)
    found = aniso.compare(x, x)
    assert found.rsa_pearson == pytest.approx(1, abs=1e-13)
    assert found.debiased_cka == pytest.approx(1, abs=1e-13)
    unchanged = {key: value - value for key, value in found.metrics_a.metrics.items()}
    assert set(unchanged) == set(METRICS)
    assert found.delta == pytest.approx(unchanged, abs=1e-12, nan_ok=True)


def test_cka_bears_rotation_scale_and_shift():
    a, b = related(120)
    exact = aniso.compare(a, b)
    rotation, _ = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))
    moved = aniso.compare(a, 7 * b @ rotation + 30)
    assert moved.debiased_cka == pytest.approx(exact.debiased_cka, rel=1e-12)
    turned = aniso.compare(a, 7 * b @ rotation)
    assert turned.rsa_pearson == pytest.approx(exact.rsa_pearson, rel=1e-12)
    # A stretch of one direction is none of these.
    stretched = aniso.compare(a, b * torch.linspace(1, 9, 9))
    assert abs(stretched.debiased_cka - exact.debiased_cka) > 1e-2


def test_independent_sources_are_unlike_however_wide_they_are():
    a, b = torch.randn(400, 1000), torch.randn(400, 900)
    found = aniso.compare(a, b)
    # Of 79,800 pairs: 1/√79,800 = 0.0035 by chance; the biased CKA of these is above 0.6.
    assert abs(found.debiased_cka) < 0.02
    assert abs(found.rsa_pearson) < 0.02
    a, b = (t - t.mean(0) for t in (a, b))
    k, m = a @ a.T, b @ b.T
    assert (k * m).sum() / (k.norm() * m.norm()) > 0.6


def test_states_and_metrics_give_the_change_alone():
    a, b = related(60)
    states = []
    for x in (a, b):
        states.append(aniso.LayerState(x.shape[1], gram=len(states) == 0))
        states[-1].update(x)
    found = aniso.compare(states[0], states[1].compute())
    assert (found.rows, found.rsa_pearson, found.debiased_cka) == (None, None, None)
    drift = reference.layer_metrics(b)["drift_norm"] - reference.layer_metrics(a)["drift_norm"]
    assert found.delta["drift_norm"] == pytest.approx(drift)
    assert "rankme" in found.metrics_a.metrics and "rankme" not in found.delta


def test_numpy_rows():
    a, b = np.random.default_rng(0).standard_normal((2, 40, 6))
    expected = reference.debiased_cka(torch.from_numpy(a), torch.from_numpy(b))
    assert aniso.compare(a, b).debiased_cka == pytest.approx(expected, rel=1e-12)


def test_bad_input():
    x, bad = torch.randn(9, 4), torch.randn(9, 3)
    bad[6, 1] = math.nan
    state = aniso.LayerState(4)
    for arguments, sentence in (
        ((x, x[:8]), "a has 9 rows, b has 8; paired rows"),
        ((x, bad), "b has 1 rows with NaN or infinite values, the first is row 6"),
        ((bad, x), "a has 1 rows with NaN"),
        ((x, x.int()), "b has dtype int32"),
        ((x[0], x), r"a has shape \[4\]"),
        ((x, "b.npy"), "b is a str; pass an array"),
        ((state, x), "b is a Tensor and the other side a state"),
        ((x, state), "a is a Tensor and the other side a state"),
    ):
        with pytest.raises(aniso.InputError, match=sentence):
            aniso.compare(*arguments)
    with pytest.raises(aniso.InputError, match="mask is given with a state"):
        aniso.compare(state, state, mask=torch.ones(9, dtype=torch.bool))


@pytest.fixture
def dumps(tmp_path):
    """Two dumps of the same 50 tokens: one file, and three shards in other dtypes and cuts."""
    a = {name: rows(50, 6, seed=i) + i for i, name in enumerate(LAYERS)}
    b = {name: (x + rows(50, 6, seed=9)).bfloat16() for name, x in a.items()}
    write_shard(tmp_path / "a.safetensors", a | {"head": rows(7, 3)}, [*LAYERS, "head"])
    (tmp_path / "b").mkdir()
    for i, part in enumerate((slice(0, 13), slice(13, 14), slice(14, 50))):
        shard = {name: x[part].contiguous() for name, x in b.items()}
        write_shard(tmp_path / "b" / f"rows-{i}.safetensors", shard, LAYERS)
    return a, b


@pytest.mark.parametrize("block_bytes", [1 << 25, 7 * 6 * 4])
def test_dumps_are_compared_row_by_row(tmp_path, dumps, monkeypatch, block_bytes):
    import aniso.dumps.dump

    monkeypatch.setattr(aniso.dumps.dump, "_BLOCK_BYTES", block_bytes)
    report = compare_sources(tmp_path / "a.safetensors", tmp_path / "b", progress=False)
    assert list(report.layers) == LAYERS
    assert report.notes == (f"only {tmp_path / 'a.safetensors'} has head: not compared",)
    for name, found in report.layers.items():
        a, b = dumps[0][name], dumps[1][name]
        assert found.rows == 50
        assert found.rsa_pearson == pytest.approx(reference.rsa_pearson(a, b), rel=1e-10)
        assert found.debiased_cka == pytest.approx(reference.debiased_cka(a, b), rel=1e-10)


def test_rows_that_a_dump_masks_do_not_count(tmp_path):
    x = rows(50, 6)
    y, masks = (x + rows(50, 6, seed=9)).double(), torch.rand(2, 50) > 0.3
    for name, tensor, mask in zip("ab", (x, y), masks, strict=True):
        write_shard(tmp_path / f"{name}.safetensors", {"h": tensor, "attention_mask": mask.int()})
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    found = compare_sources(*paths, progress=False).layers["h"]
    kept = masks.all(dim=0)
    assert found.rows == int(kept.sum()) < 50
    assert found.debiased_cka == pytest.approx(reference.debiased_cka(x[kept], y[kept]), rel=1e-9)
    # Without pairs every source has its own mask, as in its analysis.
    states = [tmp_path / f"r{name}" for name in "ab"]
    for path, out in zip(paths, states, strict=True):
        aniso.analyze(path, out=out, progress=False)
    saved, mixed = (compare_sources(a, states[1], progress=False) for a in (states[0], paths[0]))
    assert mixed.layers["h"].delta == pytest.approx(saved.layers["h"].delta, rel=1e-9, nan_ok=True)


def test_result_folders_states_and_dumps_give_the_same_change(tmp_path, dumps):
    a, b = tmp_path / "a.safetensors", tmp_path / "b"
    paired = compare_sources(a, b, progress=False)
    for source, name in ((a, "ra"), (b, "rb")):
        aniso.analyze(source, out=tmp_path / name, progress=False)
    for sources in ((tmp_path / "ra", tmp_path / "rb"), (tmp_path / "ra", b)):
        report = compare_sources(*sources, progress=False)
        assert list(report.layers) == LAYERS
        assert "saved states hold no rows" in report.notes[-1]
        for name, found in report.layers.items():
            assert found.rsa_pearson is None
            assert found.delta == pytest.approx(
                paired.layers[name].delta, rel=1e-5, abs=1e-6, nan_ok=True
            )
    files = [tmp_path / "ra" / f"{LAYERS[i]}.state.safetensors" for i in (0, 1)]
    report = compare_sources(*files, progress=False)
    assert list(report.layers) == ["embeddings → encoder.layer.0"]


def test_other_row_counts_give_the_change_and_say_so(tmp_path, dumps):
    write_shard(tmp_path / "c.safetensors", {n: x[:30] for n, x in dumps[0].items()}, LAYERS)
    report = compare_sources(
        tmp_path / "a.safetensors", tmp_path / "c.safetensors", layers=[0, 1], progress=False
    )
    assert [layer.debiased_cka for layer in report.layers.values()] == [None, None]
    assert report.notes[-1].startswith("embeddings, encoder.layer.0: 50 rows in one dump and 30")
    change = report.layers["embeddings"].delta["mean_norm"]
    norms = dumps[0]["embeddings"].double().norm(dim=1)
    assert change == pytest.approx(float(norms[:30].mean() - norms.mean()))


def test_command_in_every_form(tmp_path, dumps):
    cli = shared_cli()
    done = cli.run("compare", "a.safetensors", "b", "--layers", "enc*", cwd=tmp_path)
    assert done.code == 0, done.err
    assert re.search(r"^encoder\.layer\.1 +50 +0\.\d{4} +0\.\d{4} +[+-]\d", done.out, re.M)
    assert "embeddings" not in done.out
    assert "Note: only a.safetensors has head: not compared" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    done = cli.run("compare", "a.safetensors", "b", "--json", cwd=tmp_path)
    result = strict_json(done.out)
    assert (result["schema"], result["a"], result["b"]) == (1, "a.safetensors", "b")
    layer = result["layers"][0]
    x, y = dumps[0]["embeddings"], dumps[1]["embeddings"]
    assert layer["debiased_cka"] == pytest.approx(reference.debiased_cka(x, y), rel=1e-10)
    assert layer["rows"] == layer["a"]["counts"]["rows"] == 50
    assert set(layer["delta"]) == set(METRICS)
    assert layer["delta"]["alpha_req"] is None
    assert strict_json(done.err)["rows"] == 300


def test_rows_that_are_not_finite_are_left_out_and_named(tmp_path):
    x, y = rows(), rows(seed=1)
    x[3], y[8] = math.nan, math.inf
    write_npy(tmp_path / "a.npy", x)
    write_npy(tmp_path / "b.npy", y)
    done = shared_cli().run("compare", "a.npy", "b.npy", "--json", cwd=tmp_path)
    result = strict_json(done.out)
    assert result["notes"] == [
        "a → b: 2 of 40 rows hold NaN or infinite values and were left out of both"
    ]
    assert result["layers"][0]["rsa_pearson"] == pytest.approx(reference.rsa_pearson(x, y))


def one_layer(name, x):
    return lambda folder: write_shard(folder / "b.safetensors", {name: x})


def results_without_json(folder):
    aniso.analyze(folder / "a.safetensors", out=folder / "b.safetensors", progress=False)
    (folder / "b.safetensors" / "results.json").write_text("{")


BAD = {
    "missing": (lambda folder: None, r"no file or folder b\.safetensors; pass"),
    "damaged": (
        lambda f: (f / "b.safetensors").write_text("no dump" * 9),
        r"b\.safetensors is no complete .*; write it again",
    ),
    "no common layer": (
        one_layer("head", rows()),
        r"has layers embeddings, x, b\.safetensors has head, and none is in both; compare",
    ),
    "no rows": (one_layer("x", rows(0)), r"layer x has no rows in b\.safetensors; pass"),
    "1-D": (one_layer("x", torch.ones(5)), r"array 'x', has shape \[5\]; .* reshape"),
    "results": (results_without_json, r"results\.json is no result of aniso analyze; remove"),
    "empty folder": (lambda f: (f / "b.safetensors").mkdir(), r"has no .*; pass"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sources_get_one_sentence(tmp_path, case):
    write_shard(tmp_path / "a.safetensors", {"embeddings": rows(), "x": rows(seed=2)})
    prepare, sentence = BAD[case]
    prepare(tmp_path)
    done = shared_cli().run("compare", "a.safetensors", "b.safetensors", cwd=tmp_path)
    assert done.code == 2, done.err
    assert re.fullmatch(r"aniso: [^\n]+\n", done.err), done.err
    assert re.search(sentence, done.err), done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("conditions", "code", "sentence"),
    [
        (["mean_cosine.increase>-9"], 1, r"^aniso: mean_cosine\.increase>-9: \S+ in embeddings$"),
        (["mean_cosine.increase>9", "rsa_pearson < 0.1"], 0, ""),
        (["debiased_cka<2"], 1, r"debiased_cka<2: 0\.\d+ in embeddings$"),
        (["mean_norm.change>1e3", "mean_norm.change<1e3"], 1, r"change<1e3: "),
        (["mean_norm.decrease>9"], 0, ""),
        (["mean_cosine>0.1"], 2, r"'mean_cosine>0\.1' cannot be compared; write mean_cosine\.incr"),
        (["rsa_pearson.increase>1"], 2, "cannot be compared; write rsa_pearson"),
        (["mean_cosin.increase>1"], 2, "no metric is called 'mean_cosin'; near names are mean_cos"),
        (["mean_cosine.increase>1e"], 2, "is no condition; write"),
        (["drop table"], 2, "is no condition; write"),
        (["alpha_req.increase>0"], 2, "alpha_req is undefined in every layer"),
    ],
)
def test_conditions_decide_the_exit_code(tmp_path, dumps, conditions, code, sentence):
    arguments = [part for text in conditions for part in ("--fail-if", text)]
    done = shared_cli().run("compare", "a.safetensors", "b", *arguments, cwd=tmp_path)
    assert done.code == code, done.err
    assert re.search(sentence, done.err, re.M), done.err
    assert bool(done.out) == (code != 2)


def test_increase_is_b_less_a(tmp_path, dumps):
    """Four times the rows of a: the norms increase, and decrease the other way."""
    write_shard(tmp_path / "b4.safetensors", {"embeddings": dumps[0]["embeddings"] * 4})
    cli, condition = shared_cli(), ["--fail-if", "mean_norm.increase>0.1"]
    assert cli.run("compare", "a.safetensors", "b4.safetensors", *condition, cwd=tmp_path).code == 1
    assert cli.run("compare", "b4.safetensors", "a.safetensors", *condition, cwd=tmp_path).code == 0


def test_the_page_shows_before_and_after(tmp_path, dumps):
    done = shared_cli().run("compare", "a.safetensors", "b", "--out", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "comparison.html: " in done.out
    page = (tmp_path / "out" / "comparison.html").read_text()
    result = strict_json((tmp_path / "out" / "comparison.json").read_text())
    for key in ("cosine", "rank", "drift", "isoscore", "spectrum", "likeness"):
        assert f'id="figure-{key}"' in page and f'id="plot-{key}-' in page
    assert page.count("before (A)") >= 5
    changes = {x["name"]: abs(x["delta"]["mean_cosine"]) for x in result["layers"]}
    assert f'<p class="lead">{max(changes, key=changes.get)} changed most of 3 layers' in page


def test_the_page_without_pairs_says_what_is_missing(tmp_path, dumps):
    report = compare_sources(tmp_path / "a.safetensors", tmp_path / "a.safetensors", progress=False)
    bare = {
        name: aniso.compare(one.metrics_a, one.metrics_b) for name, one in report.layers.items()
    }
    page = ComparisonReport("a", "b", bare).to_html()
    assert "Rows are not paired" in page and "RSA-Pearson</th>" not in page
    assert (
        "No layer has a defined mean cosine"
        in ComparisonReport(
            "a", "b", {"x": aniso.compare(*[aniso.LayerState(3, gram=False)] * 2)}
        ).to_html()
    )
