"""The distribution of the cosine in a report: drawn rows, JSON, page."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from dump_helpers import rows, shared_cli, strict_json, write_npy, write_shard

import aniso
from aniso._capture_run import capture_texts
from aniso._distributions import BINS, SAMPLED_ROWS, dump_distributions
from aniso.models import CaptureOptions
from aniso.report import Report, distribution_of


def analysed(path, **options):
    return aniso.analyze(path, progress=False, **options)


def test_few_rows_are_all_counted(tmp_path):
    x = rows(300, 6)
    x[5], x[9] = 0, torch.nan
    report = analysed(write_npy(tmp_path / "a.npy", x))
    found = report.distributions["a"]
    kept = x[[i for i in range(300) if i not in (5, 9)]]
    expected = aniso.cosine_histogram(kept, bins=BINS)
    assert found.exact and found.rows == found.sampled_rows == 298
    assert found.pairs == 298 * 297 // 2
    np.testing.assert_array_equal(found.counts, expected.counts.numpy())


@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_many_rows_are_sampled_and_the_intervals_hold(tmp_path, form):
    """Two clusters, one of them last and small: a sample of the first rows would miss it."""
    x = rows(20_000, 8)
    x[-2000:] = x[-2000:] * 0.01 + torch.ones(8)
    path = tmp_path / f"a.{form}"
    write_npy(path, x) if form == "npy" else write_shard(path, {"a": x})
    found = analysed(path).distributions["a"]
    assert not found.exact
    assert (found.rows, found.sampled_rows) == (20_000, SAMPLED_ROWS)
    every = aniso.cosine_histogram(x, bins=2048)
    for q in (0.05, 0.5, 0.95):
        low, high = found.interval(q)
        assert low <= every.quantile(q) <= high
        assert found.quantile(q) == pytest.approx(every.quantile(q), abs=0.03)
    together = float(every.counts[-20:].sum()) / every.pairs
    assert found.counts[-2:].sum() / found.pairs == pytest.approx(together, rel=0.3)
    assert together > 0.005


def test_masked_rows_are_not_drawn(tmp_path):
    """Nine of ten rows are masked and all alike: none of them takes part."""
    x = torch.ones(6000, 8)
    mask = torch.zeros(6000, dtype=torch.int64)
    mask[::10] = 1
    x[::10] = rows(600, 8)
    write_shard(tmp_path / "a.safetensors", {"a": x, "attention_mask": mask})
    found = analysed(tmp_path / "a.safetensors").distributions["a"]
    assert found.rows == found.sampled_rows == 600 and found.exact
    expected = aniso.cosine_histogram(x[::10].contiguous(), bins=BINS)
    np.testing.assert_array_equal(found.counts, expected.counts.numpy())


def test_files_without_single_rows_are_left_out_and_said_so(tmp_path):
    import pyarrow
    import pyarrow.parquet

    values = pyarrow.array(rows(50, 6).tolist(), pyarrow.list_(pyarrow.float32(), 6))
    pyarrow.parquet.write_table(pyarrow.table({"a": values}), tmp_path / "a.parquet")
    report = analysed(tmp_path / "a.parquet")
    assert report.distributions == {}
    assert "No rows could be drawn" in report.to_html()


def test_rows_of_several_files_are_numbered_through(tmp_path):
    parts = [rows(30, 6, seed) for seed in range(3)]
    for i, part in enumerate(parts):
        write_shard(tmp_path / f"rows-{i}.safetensors", {"a": part})
    dump = aniso.open_dump(tmp_path)
    state = aniso.LayerState(6)
    state.update(torch.cat(parts))
    found = dump_distributions({"a": [dump["a"]]}, {"a": state})["a"]
    expected = aniso.cosine_histogram(torch.cat(parts), bins=BINS)
    np.testing.assert_array_equal(found.counts, expected.counts.numpy())


def test_a_capture_draws_rows_and_still_saves_all(minilm, tmp_path):
    texts = ["A sentence of some words.", "Another one, longer than the first.", "Short."] * 40
    options = CaptureOptions(layers=[0, 3])
    report = capture_texts(minilm, texts, {}, options, save=tmp_path / "dump", progress=False)
    again = analysed(tmp_path / "dump")
    assert list(report.distributions) == list(report.layers) == list(again.layers)
    for name, one in report.distributions.items():
        assert one.rows == report.layers[name].counts["rows"] == again.layers[name].counts["rows"]
        assert one.quantile(0.5) == pytest.approx(again.distributions[name].quantile(0.5), abs=0.05)


def test_json_gives_the_distribution_back(tmp_path):
    report = analysed(write_npy(tmp_path / "a.npy", rows(200, 6)), out=tmp_path / "out")
    entry = strict_json(report.to_json())["layers"][0]["cosine_distribution"]
    back = distribution_of(entry)
    found = report.distributions["a"]
    np.testing.assert_array_equal(back.counts, found.counts)
    np.testing.assert_allclose(back.edges, found.edges, atol=1e-15)
    assert back.interval(0.3) == pytest.approx(found.interval(0.3))
    done = shared_cli().run("report", "out", "--out", "again", cwd=tmp_path)
    assert done.code == 0, done.err
    page = (tmp_path / "again" / "report.html").read_text()
    assert 'id="figure-distribution"' in page and "No rows could be drawn" not in page
    assert (
        strict_json((tmp_path / "again" / "results.json").read_text())["layers"][0][
            "cosine_distribution"
        ]
        == entry
    )


def test_page_says_what_was_sampled(tmp_path):
    few = analysed(write_npy(tmp_path / "a.npy", rows(50, 6))).to_html()
    many = analysed(write_npy(tmp_path / "b.npy", rows(5000, 6))).to_html()
    assert "all pairs of 1,024 rows drawn uniformly from each layer" in many
    assert "1,024 of 5,000" in many and "99% confidence" in many
    assert "drawn uniformly" not in few and "all pairs of every layer" in few


def test_a_distribution_of_one_cosine_is_drawn():
    from dataclasses import replace

    x = torch.ones(20, 4)
    state = aniso.LayerState(4)
    state.update(x)
    one = aniso.cosine_histogram(x, bins=BINS)
    one = replace(one, counts=one.counts.numpy(), edges=one.edges.numpy())
    page = Report({"a": state.compute(), "b": state.compute()}, {}, distributions={"a": one})
    assert 'aria-label="Distribution of the cosine"' in page.to_html()


def test_group_tables_come_from_states_with_groups(tmp_path):
    x, ids = rows(200, 6), torch.arange(200) % 7
    x[ids == 3] += 5
    state = aniso.LayerState(6, groups=True)
    state.update(x, groups=ids)
    state.save(tmp_path / "a.state.safetensors")
    done = shared_cli().run("report", "a.state.safetensors", "--out", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    found = strict_json((tmp_path / "out" / "results.json").read_text())["layers"][0]["groups"]
    direct = aniso.group_cosine(x, ids)
    assert (found["groups"], found["rows"]) == (7, 200)
    assert found["within"] == pytest.approx(direct.within, rel=1e-9)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Mean cosine within and between groups" in page and "all rows of one group id" in page
    table = page[page.index("all rows of one group id") :]
    cells = [float(cell) for cell in re.findall(r"<td>(-?[\d.]+)</td>", table)[:7]]
    expected = [7, 200, 0, direct.within, direct.within_mean, direct.between]
    assert cells[:6] == pytest.approx(expected, abs=5e-4)
    assert "within and between groups" not in Report({"a": state.compute()}, {}).to_html()
