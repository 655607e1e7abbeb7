"""`aniso info DUMP`, and its estimate against the analysis it foretells."""

import time

import pytest
import torch
from dump_helpers import rows, shared_cli, strict_json, write_shard

from aniso import analyze, open_dump
from aniso._estimate import dump_facts
from aniso.cli.info import _duration, _size


def test_a_dump_is_described(tmp_path):
    stored = {"h.0": rows(), "h.1": rows(30, 8, dtype=torch.float16)}
    write_shard(tmp_path / "d.safetensors", {**stored, "token_ids": torch.arange(40)})
    done = shared_cli().run("info", "d.safetensors", cwd=tmp_path)
    assert done.code == 0, done.err
    first, second, total = done.out.splitlines()
    assert first.startswith("h.0  40 × 6 float32, 1.0 kB, about ")
    assert first.endswith(", with token_ids")
    assert second.startswith("h.1  30 × 8 float16, 0.5 kB, about ")
    assert total.startswith("70 rows, 1.4 kB, analysed in about ")
    done = shared_cli().run("info", "d.safetensors", "--json", cwd=tmp_path)
    found = strict_json(done.out)
    assert [layer["name"] for layer in found["layers"]] == ["h.0", "h.1"]
    assert found["layers"][0]["ids"] == ["token_ids"]
    assert (found["rows"], found["bytes"]) == (70, 1440)
    assert found["seconds"] > 0


def test_what_is_no_dump_gets_one_sentence(tmp_path):
    done = shared_cli().run("info", "gone", cwd=tmp_path)
    assert (done.code, done.err) == (
        2,
        "aniso: there is no file or folder gone; pass a dump to read\n",
    )


def test_the_estimate_is_near_the_time_of_the_analysis(tmp_path):
    path = write_shard(tmp_path / "d.safetensors", {"a": rows(400_000, 128)})
    (facts,) = dump_facts(open_dump(path))
    began = time.perf_counter()
    analyze(path, progress=False)
    # Other work on the machine and the spectra's time at the end are in it.
    assert 0.1 < facts.seconds / (time.perf_counter() - began) < 5


def test_an_empty_layer_takes_no_time(tmp_path):
    path = write_shard(tmp_path / "d.safetensors", {"a": rows(0), "b": rows()})
    assert dump_facts(open_dump(path))[0].seconds == 0
    assert dump_facts(open_dump(path))[1].seconds > 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (99, "99.0 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_durations_are_readable(seconds, text):
    assert _duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(500, "0.5 kB"), (5 * 10**6, "5.0 MB"), (16 * 10**12, "16.0 TB")]
)
def test_sizes_are_readable(count, text):
    assert _size(count) == text
