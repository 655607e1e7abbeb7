"""The finding in a sentence, Markdown, CSV, and the command that makes them of saved states."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from dump_helpers import rows, shared_cli, strict_json, write_shard

import aniso
from aniso.cli._show import show_report
from aniso.metrics import METRICS, LayerMetrics
from aniso.report import Report

COUNTS = {"rows": 1000, "zero_rows": 0, "nonfinite_rows": 0, "masked_rows": 0}


def layer(mean, rogue=0, dim=100, **counts):
    """A layer whose mean cosine comes from `rogue` dimensions, or from all alike."""
    shares = np.full(dim, mean / dim)
    if rogue:
        shares = np.zeros(dim)
        shares[np.arange(rogue) * 7 + 3] = mean / rogue
    return LayerMetrics(dim, COUNTS | counts, {"mean_cosine": mean, "rankme": math.nan}, shares)


def stack(*means, **more):
    return {f"h.{i}": layer(mean, **more) for i, mean in enumerate(means)}


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        (
            stack(0.1, 0.6, 0.62, 0.59, 0.2, rogue=4),
            r"The rows of h\.1 to h\.3 are most alike: mean cosine 0\.60, "
            r"50% of it from 2 rogue dimensions of 100 \(indices 3, 10\)\.",
        ),
        (
            stack(0.1, 0.9, rogue=1),
            r"The rows of h\.1 are most alike: mean cosine 0\.90, "
            r"100% of it from 1 rogue dimension of 100 \(index 3\)\.",
        ),
        (
            stack(0.3, 0.5),
            r".* h\.1 are .* 0\.50, made by no few dimensions \(the largest 10 make 10% of it\)\.",
        ),
        (stack(-0.2, -0.1), r"The rows of h\.1 are most alike: mean cosine -0\.10\."),
        (
            stack(math.nan, 0.5, 0.2, rogue=1),
            r".* h\.1 are most alike: mean cosine 0\.50, 100% of.*",
        ),
        (stack(-0.3, -0.001), r"The rows of h\.1 are most alike: mean cosine 0\.00\."),
        (stack(0.5), ""),
        (stack(math.nan, math.nan), ""),
        ({}, ""),
    ],
)
def test_the_finding_in_a_sentence(layers, sentence):
    assert re.fullmatch(sentence, Report(layers, {}).summary())


def test_the_page_opens_with_the_finding():
    report = Report(stack(0.1, 0.9, rogue=1), {})
    assert report.summary() in report.to_html()


def test_csv_reads_back_the_same_numbers():
    layers = stack(0.1 + 0.2, 1 / 3) | {'a,"b"': layer(0.5, zero_rows=2)}
    found = list(csv.DictReader(io.StringIO(Report(layers, {}).to_csv())))
    assert [line["layer"] for line in found] == list(layers)
    assert [float(line["mean_cosine"]) for line in found] == [0.1 + 0.2, 1 / 3, 0.5]
    assert [line["rankme"] for line in found] == [""] * 3
    assert found[2]["zero_rows"] == "2" and found[2]["dim"] == "100"


def test_markdown_is_one_table_and_hostile_text_stays_text():
    hostile = "<b>|x|\n# y_[z](u)"
    layers = stack(0.1, 0.9, rogue=1) | {hostile: layer(0.2, nonfinite_rows=3)}
    text = Report(layers, {"model": hostile}, (hostile,)).to_markdown()
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(layers)
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert "<b>" not in text and not re.search(r"^# ", text, re.M)
    assert "most alike: mean cosine 0.90" in text
    assert "Skipped because not finite: 3 rows" in text
    formula = METRICS["mean_cosine"].formula
    assert formula.split(" ")[0][:3] in text and "`mean_cosine`" in text
    assert Report({}, {}).to_markdown().startswith("## ")


def test_a_page_of_48_layers_is_small():
    rng = np.random.default_rng(0)
    layers = {}
    for i in range(48):
        shares = rng.normal(0.001, 0.01, 4096)
        sigma = np.sort(rng.exponential(size=4096))[::-1]
        numbers = dict.fromkeys(METRICS, 0.1 + i / 100)
        layers[f"model.layers.{i}"] = LayerMetrics(4096, COUNTS, numbers, shares, sigma, 1e-6)
    assert len(Report(layers, {}).to_html().encode()) < 2_000_000


@pytest.fixture
def analysed(tmp_path):
    x = {name: rows(50, 6, seed=i) + 3 * i for i, name in enumerate(("z.10", "z.9", "a"))}
    write_shard(tmp_path / "d.safetensors", x, list(x))
    cli = shared_cli()
    done = cli.run("analyze", "d.safetensors", "--out", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "most alike: mean cosine" in done.out
    return cli, tmp_path


def test_command_makes_the_same_report_of_the_states(analysed):
    cli, folder = analysed
    before = strict_json((folder / "out" / "results.json").read_text())
    done = cli.run("report", "out", "--json", "--out", "again", cwd=folder)
    assert done.code == 0, done.err
    assert strict_json(done.out) == before
    assert (folder / "again" / "report.html").exists()
    done = cli.run("report", "out", "--csv", cwd=folder)
    found = list(csv.DictReader(io.StringIO(done.out)))
    assert [line["layer"] for line in found] == [entry["name"] for entry in before["layers"]]
    metrics = before["layers"][0]["metrics"]
    assert float(found[0]["mean_cosine"]) == metrics["mean_cosine"]
    done = cli.run("report", "out", "--markdown", cwd=folder)
    assert done.code == 0 and "d.safetensors" in done.out.replace("\\", "")
    done = cli.run("report", "out/a.state.safetensors", cwd=folder)
    assert done.code == 0 and re.search("^a  +50", done.out, re.M)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("gone", "gone is no state and no folder with any; pass"),
        ("d.safetensors", r"d\.safetensors is no state"),
        ("out out/a.state.safetensors", "layer a is in .* and in .*; report on one"),
        ("broken", r"results\.json is no result of aniso analyze; remove it"),
    ],
)
def test_what_is_no_state_gets_one_sentence(analysed, arguments, sentence):
    cli, folder = analysed
    (folder / "broken").mkdir()
    aniso.LayerState(3).save(folder / "broken" / "x.state.safetensors")
    (folder / "broken" / "results.json").write_text("{}")
    done = cli.run("report", *arguments.split(), cwd=folder)
    assert done.code == 2 and re.fullmatch(r"aniso: [^\n]+\n", done.err), done.err
    assert re.search(sentence, done.err)


@pytest.mark.parametrize("name", ["TERM", "LANG", "encoding"])
def test_only_ascii_where_only_ascii_is_shown(monkeypatch, name):
    for key in ("LC_ALL", "LANG", "TERM", "NO_COLOR"):
        monkeypatch.delenv(key, raising=False)
    stream = io.TextIOWrapper(io.BytesIO(), "ascii" if name == "encoding" else "utf-8")
    if name != "encoding":
        monkeypatch.setenv(name, {"TERM": "dumb", "LANG": "C"}[name])
    monkeypatch.setattr("sys.stdout", stream)
    report = Report(stack(0.1, 0.2, 0.3, 0.6), {}, notes=("σ of layer é",))
    show_report(report, None, json_lines=False)
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")
    assert "mean_cosine" in text and "Note: sigma of layer ?" in text and "#" in text


def test_full_text_where_it_is_shown(monkeypatch):
    for key in ("LC_ALL", "TERM", "NO_COLOR"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("LANG", "C.UTF-8")
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr("sys.stdout", stream)
    show_report(Report(stack(0.1, 0.2, 0.3, 0.6), {}), None, json_lines=False)
    stream.flush()
    assert "█" in stream.buffer.getvalue().decode()


def test_singular_values_under_the_floor_are_bounds_not_numbers():
    layers = stack(0.1, 0.5)
    for name, smallest in (("h.0", 1e-12), ("h.1", 1e-3)):
        sigma = np.array([2.0, 1.0, smallest])
        layers[name] = replace(layers[name], singular_values=sigma, resolution_floor=2e-5)
    page = Report(layers, {}).to_html()
    assert "3 of 3 singular values lie above the resolution floor of 1.0e-05" in page
    assert "h.0 has 1 under its floor." in page
    assert "&lt; 1.0e-05" in page and "5.0e-13" not in page
    assert page.count('<span class="kind">bounded</span>') == 2
    layers["h.0"] = layers["h.1"]
    page = Report(layers, {}).to_html()
    assert "under its floor" not in page and '<span class="kind">bounded</span>' not in page
