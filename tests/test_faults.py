"""Runs that are killed, interrupted, out of disk or robbed of a file: nothing lost or doubled.

ANISO_FAULTS=50 repeats every fault that often at random moments: kill -9, SIGINT, SIGTERM, a full
disk (a small tmpfs, which needs root, and simulated), a shard cut while it is read, a rank killed.
"""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager

import pyarrow as pa
import pytest
import torch
from dump_helpers import file_names, rows, shared_cli, write_shard
from test_dump_formats import vectors

from aniso import InputError, LayerState, analyze
from aniso import _fold as fold_module
from aniso.dumps import dump as dump_module

REPEATS = int(os.environ.get("ANISO_FAULTS", "2"))
BLOCK = 4 * 32 * 500
LAYERS = ("a", "b")


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    write_shards(folder / "d", "safetensors")
    done = shared_cli().run("analyze", "d", "--out", "whole", cwd=folder, block_bytes=BLOCK)
    assert done.code == 0, done.err
    return folder


def bits_of(out):
    """What the states hold, bit for bit."""
    states = [LayerState.load(out / f"{name}.state.safetensors") for name in LAYERS]
    return [
        (s.sources.ranges, {k: t.numpy().tobytes() for k, t in s.state_dict().items()})
        for s in states
    ]


def finished_again(dump, out, **options):
    done = shared_cli().run("analyze", "d", "--out", out, cwd=dump, block_bytes=BLOCK, **options)
    assert done.code == 0, done.err
    return done


@pytest.mark.parametrize("trial", range(REPEATS))
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_killed_goes_on_bit_for_bit(dump, number, trial):
    out = f"{number.name}-{trial}"
    running = shared_cli().start(
        "analyze", "d", "--out", out, cwd=dump, block_bytes=BLOCK, checkpoint_seconds=0.01
    )
    time.sleep(random.Random(1000 * number + trial).uniform(0.02, 0.6))
    running.kill(number)
    ended = running.wait()
    # Before the command itself begins, Python ends with its own words.
    early = ended.code == 1 and "KeyboardInterrupt" in ended.err
    assert early or ended.code in (0, 130, -number), ended.err
    if ended.code == 130:
        # Before the first row and after the last one there is nothing to save.
        assert "run the same command again" in ended.err
    finished_again(dump, out)
    assert bits_of(dump / out) == bits_of(dump / "whole")
    assert ".aniso-partial" not in file_names(dump / out)


class DiskFullAt:
    """Saves that fail with ENOSPC from the n-th on."""

    def __init__(self, monkeypatch, count):
        self.left, self.replace = count, os.fsync
        monkeypatch.setattr(os, "fsync", self)

    def __call__(self, descriptor):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.replace(descriptor)


@pytest.mark.parametrize("trial", range(REPEATS))
def test_a_full_disk_is_told_and_the_run_goes_on_from_the_last_save(dump, monkeypatch, trial):
    monkeypatch.setattr(dump_module, "_BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(fold_module, "_CHECKPOINT_SECONDS", 0.0)
    out = dump / f"full-{trial}"
    with monkeypatch.context() as patch:
        DiskFullAt(patch, random.Random(trial).randrange(2, 300))
        with pytest.raises(InputError, match=r"cannot (be saved|write)[^\n]*No space left"):
            analyze(dump / "d", out=out, progress=False)
    kept = [p for p in out.rglob("*") if p.is_file() and p.name.startswith(".")]
    assert kept == []
    analyze(dump / "d", out=out, progress=False)
    assert bits_of(out) == bits_of(dump / "whole")


@contextmanager
def small_disk(folder, pages):
    """A file system of so many pages; `grow` gives it room. Needs root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={pages * 4}k", "x", folder], check=True)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("trial", range(REPEATS) if os.geteuid() == 0 else [])
def test_a_disk_that_is_full_is_told_and_the_run_goes_on_when_it_has_room(dump, tmp_path, trial):
    options = {"cwd": dump, "block_bytes": BLOCK}
    out = tmp_path / "disk"
    with small_disk(out, random.Random(trial).randrange(2, 40)) as grow:
        ended = shared_cli().run("analyze", "d", "--out", out, checkpoint_seconds=0.01, **options)
        assert ended.code == 2 and "No space left" in ended.err, ended.err
        assert [line.startswith("aniso: ") for line in ended.err.splitlines()][-1]
        grow()
        finished_again(dump, out)
        assert bits_of(out) == bits_of(dump / "whole")
        assert [name for name in file_names(out) if name.startswith(".")] == []


def test_files_of_limited_size_are_told(dump, tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(InputError, match="File too large"):
            analyze(dump / "d", out=tmp_path / "out", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def write_shards(folder, suffix):
    folder.mkdir()
    for shard in range(3):
        stored = {name: rows(15_000, 32, 10 * shard + i) for i, name in enumerate(LAYERS)}
        path = folder / f"rows-{shard}.{suffix}"
        if suffix == "safetensors":
            write_shard(path, stored)
        elif suffix == "pt":
            torch.save(stored, path)
        else:
            columns = pa.table({name: vectors(x) for name, x in stored.items()})
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, columns.schema) as out:
                out.write_table(columns, max_chunksize=1000)


@pytest.mark.parametrize("trial", range(max(3, REPEATS)))
def test_a_shard_cut_while_it_is_read_is_named_and_may_come_back(tmp_path, trial):
    chance, options = random.Random(trial), {"cwd": tmp_path, "block_bytes": BLOCK}
    suffix = ("safetensors", "arrow", "pt")[trial % 3]
    write_shards(tmp_path / "d", suffix)
    shutil.copytree(tmp_path / "d", tmp_path / "kept")
    assert shared_cli().run("analyze", "d", "--out", "whole", **options).code == 0
    shard = tmp_path / "d" / f"rows-{chance.randrange(3)}.{suffix}"
    running = shared_cli().start("analyze", "d", "--out", "o", checkpoint_seconds=0.01, **options)
    time.sleep(chance.uniform(0.05, 0.3))
    os.truncate(shard, chance.randrange(9, shard.stat().st_size))
    ended = running.wait()
    if ended.code:
        assert ended.code == 2 and shard.name in ended.err, ended.err
        again = shared_cli().run("analyze", "d", "--out", "o", **options)
        assert again.code == 2 and shard.name in again.err, again.err
    shutil.copy2(tmp_path / "kept" / shard.name, shard)
    finished_again(tmp_path, "o")
    assert bits_of(tmp_path / "o") == bits_of(tmp_path / "whole")


def test_a_shard_that_changed_between_two_runs_is_named(dump, tmp_path, monkeypatch):
    monkeypatch.setattr(dump_module, "_BLOCK_BYTES", BLOCK)
    shutil.copytree(dump / "d", tmp_path / "d")
    running = shared_cli().start(
        "analyze", "d", "--out", "o", cwd=tmp_path, block_bytes=BLOCK, checkpoint_seconds=0
    )
    while not list(tmp_path.glob("o/.aniso-partial/b.*")):
        time.sleep(0.002)
    running.kill(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    changed = {name: rows(15_000, 32, i) * 2 for i, name in enumerate(LAYERS)}
    write_shard(tmp_path / "d" / "rows-0.safetensors", changed)
    ended = shared_cli().run("analyze", "d", "--out", "o", cwd=tmp_path, block_bytes=BLOCK)
    assert ended.code == 2
    assert "rows-0.safetensors has changed since the unfinished run" in ended.err
    anew = shared_cli().run(
        "analyze", "d", "--out", "o", "--no-resume", cwd=tmp_path, block_bytes=BLOCK
    )
    assert anew.code == 0, anew.err
    state = LayerState.load(tmp_path / "o" / "a.state.safetensors")
    assert state.moments.rows == 45_000


@pytest.mark.parametrize("trial", range(REPEATS))
def test_a_killed_rank_ends_the_others_and_all_go_on(dump, trial):
    options, out = {"cwd": dump, "block_bytes": BLOCK, "ranks": 2}, f"ranks-{trial}"
    running = shared_cli().start("analyze", "d", "--out", out, checkpoint_seconds=0.01, **options)
    chance = random.Random(trial)
    time.sleep(chance.uniform(0.1, 0.8))
    running.kill_rank(1, signal.SIGKILL)
    time.sleep(0.05)
    running.kill(signal.SIGTERM)
    running.wait()
    again = shared_cli().run("analyze", "d", "--out", out, **options)
    assert again.code == 0, again.err
    assert bits_of(dump / out) == bits_of(dump / "whole")


def test_another_number_of_ranks_does_not_go_on(dump, tmp_path):
    shutil.copytree(dump / "d", tmp_path / "d")
    running = shared_cli().start(
        "analyze", "d", "--out", "o", cwd=tmp_path, block_bytes=BLOCK, checkpoint_seconds=0
    )
    while not list(tmp_path.glob("o/.aniso-partial/a.*")):
        time.sleep(0.002)
    running.kill(signal.SIGKILL)
    running.wait()
    ended = shared_cli().run("analyze", "d", "--out", "o", cwd=tmp_path, ranks=2)
    assert ended.code == 2
    assert "holds an unfinished run of one process" in ended.err
