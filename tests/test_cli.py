import math
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from dump_helpers import file_names, rows, shared_cli, strict_json, write_npy, write_shard

COMMAND = [sys.executable, "-P", "-m", "aniso"]


@pytest.fixture
def cli():
    return shared_cli()


class Bomb:
    """Unpickling it makes a file in the current folder."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def shards(folder, *tensors):
    (folder / "d").mkdir()
    for i, x in enumerate(tensors):
        write_shard(folder / "d" / f"rows-{i}.safetensors", {"a": x})


def objects(folder):
    array = np.array([[Bomb()]], dtype=object)
    np.save(folder / "a.npy", array, allow_pickle=True)
    (folder / "unpickled").unlink(missing_ok=True)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def nan_in_row_27(folder):
    x = rows()
    x[27, 1] = math.nan
    write_npy(folder / "a.npy", x)


def npy(x):
    return lambda folder: write_npy(folder / "a.npy", x)


def safetensors(x):
    return lambda folder: write_shard(folder / "a.safetensors", {"h": x})


BAD_DUMPS = {
    "missing": (lambda f: None, "a.npy", r"no file or folder a\.npy; pass"),
    "empty npy": (lambda f: (f / "a.npy").touch(), "a.npy", r"a\.npy is empty .*; write it again"),
    "empty shard": (lambda f: (f / "a.safetensors").touch(), "a.safetensors", "is empty"),
    "empty folder": (lambda f: (f / "d").mkdir(), "d", "folder d has no .*; pass"),
    "other format": (lambda f: (f / "a.csv").write_text("1,2"), "a.csv", r"a\.csv .*; convert it"),
    "truncated npy": (lambda f: truncated(npy(rows())(f)), "a.npy", r"a\.npy .*; write it with"),
    "truncated safetensors": (
        lambda f: truncated(safetensors(rows())(f)),
        "a.safetensors",
        r"a\.safetensors is no complete .*; write it again",
    ),
    "json": (
        lambda f: (f / "a.safetensors").write_text('{"layers": [1, 2, 3], "rows": "many"}' * 9),
        "a.safetensors",
        r"a\.safetensors is no complete .*; write it again",
    ),
    "1-D npy": (npy(torch.ones(5)), "a.npy", r"a\.npy has shape \[5\]; .* reshape it"),
    "3-D npy": (npy(torch.ones(2, 3, 4)), "a.npy", r"shape \[2, 3, 4\]; .* reshape"),
    "0-D npy": (npy(torch.ones(())), "a.npy", r"shape \[\]; .* reshape"),
    "1-D": (safetensors(torch.ones(5)), "a.safetensors", r"array 'h', has shape \[5\]"),
    "3-D": (safetensors(torch.ones(2, 3, 4)), "a.safetensors", r"'h', .*\[2, 3, 4\].* reshape"),
    "no columns": (npy(torch.ones(5, 0)), "a.npy", r"a\.npy has shape \[5, 0\]"),
    "integers npy": (npy(torch.ones(2, 3).int()), "a.npy", r"a\.npy has dtype int32; .* convert"),
    "integers": (safetensors(torch.ones(2, 3).int()), "a.safetensors", "dtype I32; .* convert"),
    "complex": (npy(np.ones((2, 3), complex)), "a.npy", "dtype complex128; .* convert"),
    "text": (npy(np.array([["a"]])), "a.npy", "dtype <U1; .* convert"),
    "objects": (objects, "a.npy", r"a\.npy .*; write it with numpy\.save"),
    "pickle": (lambda f: (f / "a.npy").write_bytes(pickle.dumps(Bomb())), "a.npy", r"a\.npy .*; w"),
    "dims differ": (
        lambda f: shards(f, rows(4, 6), rows(4, 7)),
        "d",
        r"6 columns in d/rows-0\.safetensors, .* 7 in d/rows-1\.safetensors; all files",
    ),
    "no rows": (lambda f: shards(f, rows(0), rows(0)), "d", "layer a has no rows in d; pass"),
    "no rows npy": (npy(rows(0)), "a.npy", r"layer a has no rows in a\.npy; pass"),
    "no layers": (lambda f: write_shard(f / "a.safetensors", {}), "a.safetensors", "no arrays; p"),
    "strict": (nan_in_row_27, "a.npy --strict", r"a\.npy has a NaN .* row 27; mend it"),
    "layers": (npy(rows()), "a.npy --layers b*", r"no layer matches 'b\*'; near names are a$"),
    "position": (npy(rows()), "a.npy --layers -2", "there is no layer -2; there are 1"),
    "second": (npy(rows()), "a.npy b.npy", r"no file or folder b\.npy; pass"),
    "twice": (npy(rows()), "a.npy a.npy", r"a\.npy.* twice"),
    "out": (npy(rows()), "a.npy --out a.npy/out", "to folder a.npy/out .*; choose another"),
}


def assert_refused(finished, sentence):
    assert finished.code == 2, finished.err
    assert re.fullmatch(r"aniso: [^\n]+\n", finished.err), finished.err
    assert re.search(sentence, finished.err), finished.err
    assert finished.out == ""


@pytest.mark.parametrize("case", BAD_DUMPS)
def test_bad_dumps_get_one_sentence_and_nothing_is_written(tmp_path, cli, case):
    prepare, arguments, sentence = BAD_DUMPS[case]
    prepare(tmp_path)
    before = file_names(tmp_path)
    finished = cli.run("analyze", "--out", "out", *arguments.split(), cwd=tmp_path)
    assert_refused(finished, sentence)
    assert not (tmp_path / "out").exists() or file_names(tmp_path / "out") == []
    assert [name for name in file_names(tmp_path) if name != "out"] == before
    assert "unpickled" not in before


def test_the_bomb_would_have_gone_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects(tmp_path)
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("t.txt", "folder model has no config.json; pass the folder"),
        ("gone.txt", r"gone\.txt cannot be read .*; pass"),
        ("empty.txt", r"empty\.txt has no text in it; write"),
        ("latin.txt", r"latin\.txt is not UTF-8 at byte 1; convert"),
        ("model", r"model cannot be read .*; pass"),
    ],
)
def test_capture_refuses_models_and_texts_it_cannot_read(tmp_path, cli, text, sentence):
    (tmp_path / "model").mkdir()
    (tmp_path / "t.txt").write_text("A sentence.\n")
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "latin.txt").write_bytes("né".encode("latin-1"))
    arguments = ["--model", "model", "--text", text, "--out", "out", "--save", "rows"]
    assert_refused(cli.run("capture", *arguments, cwd=tmp_path), sentence)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "rows").exists()


def test_a_good_dump_in_a_process_of_its_own(tmp_path):
    write_npy(tmp_path / "a.npy", rows())
    command = [*COMMAND, "analyze", "a.npy", "--out", "out", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert strict_json(done.stdout) == strict_json((tmp_path / "out" / "results.json").read_text())
    assert strict_json(done.stderr)["rows"] == 40


def test_the_table_and_where_the_files_are(tmp_path, cli):
    x = rows()
    x[3] = math.nan
    write_shard(tmp_path / "d.safetensors", {"[/bold]": x})
    done = cli.run("analyze", "d.safetensors", "--out", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "[/bold]: 1 of 40 rows hold NaN" in done.out
    assert f"report.html: {tmp_path / 'out' / 'report.html'}" in done.out
    assert re.fullmatch("analyze: 40 of 40 rows, .*\n", done.err)


def test_unexpected_errors_are_one_line_and_a_traceback_when_asked_for(tmp_path, cli):
    done = cli.run("analyze", "a\0.npy", "--out", "out", cwd=tmp_path)
    assert done.code == 1
    assert re.fullmatch(r"aniso: ValueError: [^\n]*\n", done.err)
    assert "Traceback" not in done.err
    done = cli.run("analyze", "a\0.npy", "--out", "out", "--debug", cwd=tmp_path)
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.err


@pytest.mark.parametrize("arguments", [["--debug", "analyze", "b"], ["analyze", "b", "--debug"]])
def test_debug_shows_where_and_keeps_the_exit_code(tmp_path, cli, arguments):
    done = cli.run(*arguments, cwd=tmp_path)
    assert "Traceback (most recent call last)" in done.err
    assert "there is no file or folder b" in done.err
    assert done.code == 2


@pytest.mark.parametrize("arguments", [[], ["bogus"], ["analyze"], ["analyze", "a.npy", "--nix"]])
def test_usage_errors_exit_with_2(tmp_path, cli, arguments):
    done = cli.run(*arguments, cwd=tmp_path)
    assert done.code == 2
    assert "Usage:" in done.err
    assert "Traceback" not in done.err


def test_help_is_quick_and_does_not_wait_for_torch(tmp_path):
    def seconds():
        began = time.perf_counter()
        subprocess.run([*COMMAND, "--help"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(5)) < 0.4
    command = [sys.executable, "-P", "-X", "importtime", "-m", "aniso", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "aniso.cli" in imported
    assert not imported & {"torch", "numpy", "rich", "transformers"}
    assert {"analyze", "capture", "compare", "demo", "info"} <= set(
        re.findall(r"^  (\w+) ", done.stdout, re.M)
    )
