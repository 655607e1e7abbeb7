import math
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from dump_helpers import Watched, file_names, metrics_of, rows, strict_json, write_npy, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from aniso import InputError, LayerState, analyze, open_dump, reference
from aniso._distributions import SAMPLED_ROWS
from aniso._interrupt import deferred_interrupt
from aniso.dumps import dump as dump_module
from aniso.dumps._read_ahead import _AHEAD
from aniso.state import Block

NAN, INF = math.nan, math.inf


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(dump_module, "_BLOCK_BYTES", 10 * 6 * 4)


def quiet(*sources, **options):
    return analyze(list(sources), progress=False, **options)


def same_metrics(actual, expected, rtol=1e-12):
    assert list(actual.layers) == list(expected.layers)
    for name, layer in expected.layers.items():
        assert actual.layers[name].counts == layer.counts
        # A skewness may vanish: its terms are of order one.
        same = pytest.approx(layer.metrics, rel=rtol, abs=rtol / 10, nan_ok=True)
        assert metrics_of(actual, name) == same


def test_every_layer_is_the_reference_of_its_rows(tmp_path):
    stored = {f"h.{i}": rows(57, 24, i, torch.float16) + i / 4 for i in (10, 9)}
    report = quiet(write_shard(tmp_path / "d.safetensors", stored))
    assert list(report.layers) == ["h.9", "h.10"]
    for name, x in stored.items():
        assert report.layers[name].counts["rows"] == 57
        for key, value in reference.layer_metrics(x.double()).items():
            # Half precision: a few roundings of 2^-24 in so few rows.
            assert metrics_of(report, name)[key] == pytest.approx(value, rel=1e-6, nan_ok=True), key


def test_files_of_out_say_what_the_report_says(tmp_path):
    path = write_shard(tmp_path / "d.safetensors", {"a/b": rows(), "c": rows(seed=1)})
    report = quiet(path, out=tmp_path / "out")
    states = ["a%2Fb.state.safetensors", "c.state.safetensors"]
    assert file_names(tmp_path / "out") == [*states, "report.html", "results.json"]
    results = strict_json((tmp_path / "out" / "results.json").read_text())
    assert [layer["name"] for layer in results["layers"]] == ["a/b", "c"]
    assert results["layers"][1]["metrics"]["mean_cosine"] == metrics_of(report, "c")["mean_cosine"]
    assert results["provenance"]["sources"] == [{"path": str(path), "rows": {"a/b": 40, "c": 40}}]
    state = LayerState.load(tmp_path / "out" / states[1])
    assert state.compute().metrics == pytest.approx(metrics_of(report, "c"), rel=1e-12, nan_ok=True)


def test_layers_are_chosen(tmp_path):
    path = write_shard(tmp_path / "d.safetensors", {f"h.{i}": rows() for i in range(11)})
    assert list(quiet(path, layers=["h.1*", -1]).layers) == ["h.1", "h.10"]


@settings(max_examples=25, deadline=None)
@given(split=st.integers(1, 56), seed=st.integers(0, 99))
def test_dumps_sum_and_their_order_does_not_matter(tmp_path_factory, split, seed):
    folder = tmp_path_factory.mktemp("sum")
    x = rows(57, 6, seed)
    for part, name in ((x[:split], "first"), (x[split:], "second"), (x, "whole")):
        (folder / name).mkdir()
        write_npy(folder / name / "a.npy", part)
    first, second = folder / "first", folder / "second"
    whole = quiet(folder / "whole")
    same_metrics(quiet(first, second), whole, rtol=1e-9)
    same_metrics(quiet(second, first), whole, rtol=1e-9)


def test_rows_that_are_not_finite_are_counted_and_left_out(tmp_path):
    x = rows()
    x[3, 2], x[9, 0], x[35] = NAN, INF, 0
    report = quiet(write_npy(tmp_path / "a.npy", x), out=tmp_path / "out")
    counts = {"rows": 38, "zero_rows": 1, "nonfinite_rows": 2, "masked_rows": 0}
    assert report.layers["a"].counts == counts
    assert report.notes == ("a: 2 of 40 rows hold NaN or infinite values and were left out",)
    kept = quiet(write_npy(tmp_path / "a.npy", x[x.isfinite().all(1)]))
    assert metrics_of(report, "a") == pytest.approx(metrics_of(kept, "a"), nan_ok=True)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "2 of 40 rows hold NaN" in page


@pytest.mark.parametrize("gram", [True, False])
def test_nothing_but_nan_gives_counts_and_null_metrics(tmp_path, gram):
    path = write_npy(tmp_path / "a.npy", torch.full((40, 6), NAN))
    quiet(path, out=tmp_path / "out", gram=gram)
    (layer,) = strict_json((tmp_path / "out" / "results.json").read_text())["layers"]
    assert (layer["counts"]["rows"], layer["counts"]["nonfinite_rows"]) == (0, 40)
    assert layer["metrics"]
    assert set(layer["metrics"].values()) == {None}


def test_strict_names_file_and_row_and_writes_nothing(tmp_path):
    (tmp_path / "dump").mkdir()
    bad = rows(seed=1)
    bad[27, 1] = INF
    write_shard(tmp_path / "dump" / "rows-0.safetensors", {"a": rows(), "b": rows()})
    write_shard(tmp_path / "dump" / "rows-1.safetensors", {"a": rows(seed=2), "b": bad})
    with pytest.raises(InputError, match=r"rows-1\.safetensors has a NaN .* in row 27; mend it"):
        quiet(tmp_path / "dump", out=tmp_path / "out", strict=True)
    assert not (tmp_path / "out").exists() or file_names(tmp_path / "out") == []


def test_strict_does_not_take_over_a_state_with_bad_rows(tmp_path):
    bad = rows()
    bad[27, 1] = NAN
    path = write_npy(tmp_path / "a.npy", bad)
    quiet(path, out=tmp_path / "out")
    with pytest.raises(InputError, match="row 27"):
        quiet(path, out=tmp_path / "out", strict=True)


@pytest.mark.parametrize("interrupt_at", [1, 2, 5, 8])
def test_interrupted_and_resumed_is_as_if_nothing_had_been(tmp_path, interrupt_at):
    path = write_shard(tmp_path / "d.safetensors", {"a": rows(), "b": rows(40, 6, 1)})
    whole, first, second = Watched(path), Watched(path, interrupt_at), Watched(path)
    expected = quiet(whole)
    with pytest.raises(KeyboardInterrupt):
        quiet(first, out=tmp_path / "out")
    assert file_names(tmp_path / "out") == [".aniso-partial"]
    same_metrics(quiet(second, out=tmp_path / "out"), expected)
    saved = len(whole.reads) - len(second.reads)
    # Blocks that were read ahead of the interruption are read again.
    assert max(1, interrupt_at - _AHEAD) <= saved <= len(first.reads) <= saved + _AHEAD
    assert first.reads[:saved] + second.reads == whole.reads
    assert ".aniso-partial" not in file_names(tmp_path / "out")


@pytest.mark.parametrize("interrupt_at", [1, 5, 8, 17, 24])
def test_blocks_that_wait_for_others_are_read_again(tmp_path, monkeypatch, interrupt_at):
    """Leaves of 8 blocks, multiplied 4 at a time: an interruption changes no digit."""
    monkeypatch.setattr(dump_module, "_BLOCK_BYTES", 5 * 48 * 4)
    path = write_shard(tmp_path / "d.safetensors", {"a": rows(120, 48)})
    first, second = Watched(path, interrupt_at), Watched(path)
    quiet(path, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        quiet(first, out=tmp_path / "out")
    quiet(second, out=tmp_path / "out")
    saved = 24 - len(second.reads)
    assert saved % 4 == 0 and saved <= len(first.reads) <= saved + 4 + _AHEAD
    whole, resumed = (
        LayerState.load(tmp_path / folder / "a.state.safetensors") for folder in ("whole", "out")
    )
    assert resumed.sources == whole.sources
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_an_interruption_outside_the_loop_is_not_lost():
    with pytest.raises(KeyboardInterrupt, match="on"), deferred_interrupt("on"):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_interruption_is_not_deferred():
    with pytest.raises(KeyboardInterrupt), deferred_interrupt("on") as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_runs_in_a_thread(tmp_path):
    path = write_npy(tmp_path / "a.npy", rows())
    with ThreadPoolExecutor(1) as pool:
        same_metrics(pool.submit(quiet, path).result(), quiet(path))


def test_a_finished_layer_is_not_read_again(tmp_path):
    path = write_shard(tmp_path / "d.safetensors", {"a": rows(3000), "b": rows(3000, 6, 1)})
    quiet(path, out=tmp_path / "out", layers="a")
    again, anew = Watched(path), Watched(path)
    same_metrics(quiet(again, out=tmp_path / "out"), quiet(path))
    assert {layer for layer, _, _ in again.reads} == {"b"}
    # Its state holds sums: the report's distribution takes its sample of rows, and no more.
    assert sum(layer == "a" for layer, _, _ in again.sampled) == SAMPLED_ROWS
    quiet(anew, out=tmp_path / "out", resume=False)
    assert {layer for layer, _, _ in anew.reads} == {"a", "b"}


def test_rows_added_to_a_dump_are_added_to_its_state(tmp_path):
    dump = tmp_path / "dump"
    dump.mkdir()
    write_shard(dump / "rows-0.safetensors", {"a": rows()})
    quiet(dump, out=tmp_path / "out")
    write_shard(dump / "rows-1.safetensors", {"a": rows(30, 6, 1)})
    watched = Watched(dump)
    same_metrics(quiet(watched, out=tmp_path / "out"), quiet(dump), rtol=1e-9)
    assert len(watched.reads) == 3
    (dump / "rows-0.safetensors").unlink()
    same_metrics(quiet(dump, out=tmp_path / "out"), quiet(dump))


def test_states_of_other_rows_or_another_gram_setting_are_not_taken_over(tmp_path):
    out, path = tmp_path / "out", tmp_path / "a.npy"
    for seed, gram in ((0, True), (1, True), (1, False), (1, True)):
        write_npy(path, rows(seed=seed))
        same_metrics(quiet(path, out=out, gram=gram), quiet(path, gram=gram))


def test_a_state_is_not_taken_over_when_few_rows_of_a_large_file_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(dump_module, "_BLOCK_BYTES", 1 << 25)
    x = rows(20_000, 64)
    path = write_npy(tmp_path / "a.npy", x)
    quiet(path, out=tmp_path / "out", gram=False)
    x[10_000:10_100] *= -1000
    write_npy(path, x)
    same_metrics(quiet(path, out=tmp_path / "out", gram=False), quiet(path, gram=False))


@pytest.mark.parametrize("with_known_rows", [False, True])
def test_states_of_a_live_capture_are_not_taken_over(tmp_path, with_known_rows):
    out, path = tmp_path / "out", write_npy(tmp_path / "a.npy", rows())
    out.mkdir()
    state = LayerState(6)
    if with_known_rows:
        source = open_dump(path)["a"].parts[0].source
        state.update(rows()[:10], block=Block(source, 0, 10))
    state.update(rows(seed=5))
    state.save(out / "a.state.safetensors")
    same_metrics(quiet(path, out=out), quiet(path))


def test_one_dump_given_twice_is_refused(tmp_path):
    out, path = tmp_path / "out", write_npy(tmp_path / "a.npy", rows())
    with pytest.raises(InputError, match=r"a\.npy.* twice"):
        quiet(path, path, out=out)
    assert not out.exists() or file_names(out) == []
    quiet(path, out=out)
    with pytest.raises(InputError, match=r"a\.npy.* twice"):
        quiet(path, path, out=out)


@pytest.mark.parametrize("write", [write_npy, lambda p, x: write_shard(p, {"a": x})])
def test_results_written_into_the_dump_do_not_become_part_of_it(tmp_path, write):
    suffix = "npy" if write is write_npy else "safetensors"
    write(tmp_path / f"a.{suffix}", rows())
    try:
        expected = quiet(tmp_path, out=tmp_path)
    except InputError as error:
        assert str(tmp_path) in str(error)
    same_metrics(quiet(tmp_path), expected)


def test_widths_that_differ_between_dumps_and_nothing_to_do_are_refused(tmp_path):
    (tmp_path / "x").mkdir()
    paths = [write_npy(tmp_path / "a.npy", rows()), write_npy(tmp_path / "x/a.npy", rows(4, 7))]
    with pytest.raises(InputError, match="6 columns in one dump"):
        quiet(*paths)
    with pytest.raises(InputError, match="pass at least one"):
        quiet()
    with pytest.raises(InputError):
        quiet(paths[0], layers=[])
