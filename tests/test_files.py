import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from dump_helpers import file_names, rows, shared_cli, strict_json, write_shard
from hypothesis import given
from hypothesis import strategies as st

from aniso import InputError, LayerState, analyze
from aniso._files import atomic_path, writable_folder, write_atomic
from aniso.state.state_tree import StateTree

NAMES = [f"h.{i}" for i in range(3)]


@pytest.fixture
def cli():
    return shared_cli()


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert file_names(tmp_path) == ["a.json"]


@given(st.binary(max_size=100))
def test_whatever_is_written_is_read(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.bin"
    write_atomic(path, data)
    assert path.read_bytes() == data


def test_an_exception_keeps_the_previous_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert file_names(tmp_path) == ["a.json"]


def test_readers_see_the_previous_file_until_the_end(tmp_path):
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_the_mode_follows_the_umask_though_the_writer_made_its_own_file(tmp_path):
    previous = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "a") as temporary:
            temporary.unlink()
            temporary.write_bytes(b"")
            temporary.chmod(0o600)
    finally:
        os.umask(previous)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_the_leftover_of_a_killed_process_of_the_same_number_is_no_obstacle(tmp_path):
    """In containers a process gets the same number every time."""
    script = (
        "import os, pathlib, signal, sys\n"
        "from aniso._files import atomic_path\n"
        "with atomic_path(pathlib.Path(sys.argv[1])) as path:\n"
        "    path.write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-P", "-c", script, str(tmp_path / "a.json")]
    with subprocess.Popen(command) as process:
        process.wait()
    (leftover,) = tmp_path.iterdir()
    assert str(process.pid) in leftover.name
    leftover.rename(leftover.with_name(leftover.name.replace(str(process.pid), str(os.getpid()))))
    write_atomic(tmp_path / "a.json", b"whole")
    assert file_names(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_bytes() == b"whole"


def test_writable_folder_makes_it_and_sweeps_leftovers_alone(tmp_path):
    folder = tmp_path / "a" / "b"
    assert writable_folder(folder) == folder
    assert list(folder.iterdir()) == []
    (folder / ".x.npy.123.aniso-partial").write_bytes(b"half")
    (folder / ".aniso-partial").mkdir()
    (folder / ".aniso-partial" / "state").write_bytes(b"kept")
    (folder / "mine.txt").write_bytes(b"kept")
    writable_folder(folder)
    assert file_names(folder) == [".aniso-partial", "mine.txt"]
    assert (folder / ".aniso-partial" / "state").exists()


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    for path in (file, file / "below"):
        with pytest.raises(InputError, match=f"cannot write to folder {path} .*; choose another"):
            writable_folder(path)
    assert file.read_bytes() == b""


def versions(folder):
    """Which version every file that is not hidden is of, by its rows; each must be whole."""
    found = {}
    for path in folder.glob("[!.]*"):
        if path.suffix == ".json":
            layers = strict_json(path.read_text())["layers"]
            assert [layer["name"] for layer in layers] == NAMES
            (found[path.name],) = {layer["counts"]["rows"] for layer in layers}
        elif path.suffix == ".html":
            page = path.read_text()
            assert page.rstrip().endswith("</html>")
            found[path.name] = 300 if ">300<" in page else 400
        else:
            found[path.name] = LayerState.load(path).moments.rows
    assert set(found.values()) <= {300, 400}
    return found


def wait_for_a_write(folder, passed_over):
    """Until one more file than `passed_over` is about to be written, or five seconds."""
    seen, end = set(), time.perf_counter() + 5
    while len(seen) <= passed_over and time.perf_counter() < end:
        seen |= set(folder.glob(".[hr]*.aniso-partial"))


def test_kill_leaves_previous_or_complete_files(tmp_path, cli):
    chance = random.Random(1)
    for name, n in (("old", 300), ("new", 400)):
        (tmp_path / name).mkdir()
        layers = {layer: rows(n, 256, i) for i, layer in enumerate(NAMES)}
        write_shard(tmp_path / name / "rows-0.safetensors", layers)
    analyze(tmp_path / "old", out=tmp_path / "before", progress=False)
    began = time.perf_counter()
    options = {"cwd": tmp_path, "block_bytes": 1 << 16}
    assert cli.run("analyze", "new", "--out", "whole", **options).code == 0
    whole = time.perf_counter() - began
    killed, seen = 0, set()
    for attempt in range(10):
        if attempt % 4 == 0:
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            shutil.copytree(tmp_path / "before", tmp_path / "out")
        running = cli.start("analyze", "new", "--out", "out", **options)
        if attempt % 2:
            time.sleep(chance.uniform(0.05, 1) * whole)
        else:
            wait_for_a_write(tmp_path / "out", chance.randrange(5))
        running.kill(signal.SIGKILL)
        killed += running.wait().code == -signal.SIGKILL
        found = versions(tmp_path / "out")
        assert sorted(found) == file_names(tmp_path / "before")
        seen |= set(found.values())
    assert killed >= 5
    assert seen == {300, 400}
    assert cli.run("analyze", "new", "--out", "out", **options).code == 0
    assert file_names(tmp_path / "out") == file_names(tmp_path / "whole")
    assert_same_results(*((tmp_path / f / "results.json").read_text() for f in ("out", "whole")))


def assert_same_results(*texts):
    for a, b in zip(*(strict_json(text)["layers"] for text in texts), strict=True):
        assert (a["name"], a["counts"]) == (b["name"], b["counts"])
        undefined = {key for key, value in a["metrics"].items() if value is None}
        assert undefined == {key for key, value in b["metrics"].items() if value is None}
        for key in a["metrics"].keys() - undefined:
            assert a["metrics"][key] == pytest.approx(b["metrics"][key], rel=1e-12), key


def long_dump(folder):
    """A small layer, and one that takes seconds in blocks of 64 KB."""
    layers = {"a": rows(40, 16), "b": rows(90_000, 256)}
    return write_shard(folder / "d.safetensors", layers, ["a", "b"])


def interrupted(cli, folder, *options):
    """Sends Ctrl-C once the small layer is done."""
    arguments = "analyze", "d.safetensors", "--out", "out", *options
    running = cli.start(*arguments, cwd=folder, block_bytes=1 << 16)
    while not (folder / "out" / ".aniso-partial" / "a.state.safetensors").exists():
        time.sleep(0.005)
    running.kill(signal.SIGINT)
    return running.wait()


def test_ctrl_c_saves_and_the_next_run_goes_on(tmp_path, cli):
    path = long_dump(tmp_path)
    done = interrupted(cli, tmp_path)
    assert (done.code, done.out) == (130, "")
    sentence = (
        "aniso: interrupted; the rows done are saved in out; run the same command again to go on"
    )
    assert done.err.strip() == sentence
    partial = tmp_path / "out" / ".aniso-partial"
    assert file_names(tmp_path / "out") == [".aniso-partial"]
    trees = [StateTree.load(tree) for tree in sorted(partial.iterdir())]
    saved = sum(tree.rows_seen for tree in trees)
    assert 40 <= saved < 90_040
    done = cli.run("analyze", path, "--out", "out", "--json", cwd=tmp_path, block_bytes=1 << 16)
    assert done.code == 0
    assert strict_json(done.err.splitlines()[-1])["resumed"] == saved
    again = cli.run("analyze", path, "--json", cwd=tmp_path, block_bytes=1 << 16)
    assert_same_results(done.out, again.out)


def test_ctrl_c_promises_nothing_when_nothing_is_saved(tmp_path, cli):
    long_dump(tmp_path)
    running = cli.start("analyze", "d.safetensors", cwd=tmp_path, block_bytes=1 << 16)
    time.sleep(0.2)
    running.kill(signal.SIGINT)
    done = running.wait()
    assert done.code == 130
    assert "go on where it stopped" not in done.err
