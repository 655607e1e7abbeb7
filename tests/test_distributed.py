"""Any number of processes gives one result; states merge in any order."""

import functools
import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from dump_helpers import free_port, rows, shared_cli, write_shard
from hypothesis import given, settings
from hypothesis import strategies as st

from aniso import InputError, LayerState, analyze
from aniso._merge import merge_states
from aniso.state import Block
from aniso.state.state_tree import StateTree

BLOCK = 24 * 4 * 11

# Rows of float32 are cut to 39 bits about a row of their block, and blocks differ.
OTHER_BLOCKS = 1e-10


def layers_of(folder):
    return json.loads((folder / "results.json").read_text())["layers"]


def bits_of(folder):
    state = LayerState.load(folder / "h.1.state.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in state.state_dict().items()}


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "d").mkdir()
    for shard, n in enumerate((900, 77, 1300)):
        stored = {f"h.{i}": rows(n, 24, 10 * shard + i) + i for i in (0, 1)}
        write_shard(folder / "d" / f"rows-{shard}.safetensors", stored)
    return folder


def analysed(dump, out, ranks, *options):
    done = shared_cli().run(
        "analyze", "d", "--out", out, *options, cwd=dump, block_bytes=BLOCK, ranks=ranks
    )
    assert done.code == 0, done.err
    assert done.out.count("results.json: ") == 1
    return dump / out


@pytest.mark.parametrize("option", [(), ("--deterministic",)], ids=["plain", "one thread"])
def test_any_number_of_ranks_gives_the_same_results_and_states(dump, option):
    runs = [analysed(dump, f"{len(option)}-{n}", n, *option) for n in (1, 2, 3, 4)]
    for other in runs[1:]:
        assert layers_of(other) == layers_of(runs[0])
        assert bits_of(other) == bits_of(runs[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_any_number_of_threads_gives_the_same_results(tmp_path, dtype):
    write_shard(tmp_path / "d.safetensors", {"h": rows(20_000, 64).to(dtype)})
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(analyze(tmp_path / "d.safetensors", progress=False).layers["h"].metrics)
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


def test_more_ranks_than_blocks(tmp_path):
    write_shard(tmp_path / "d.safetensors", {"h.0": rows(), "h.1": rows(seed=1)})
    for options in ((), ("--deterministic",)):
        done = shared_cli().run(
            "analyze", "d.safetensors", "--out", "out", *options, cwd=tmp_path, ranks=3
        )
        assert done.code == 0, done.err
        assert [layer["counts"]["rows"] for layer in layers_of(tmp_path / "out")] == [40, 40]


def test_torchrun_starts_it(dump):
    one = analysed(dump, "alone", 1, "--deterministic", "--layers", "h.1")
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port()), "-m", "aniso", "analyze", "d", "--out", "two"]
    done = subprocess.run(
        [*command, "--deterministic", "--layers", "h.1"],
        cwd=dump,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The size of a block is not the same here: other leaves, other last digits.
    (mine,), (theirs,) = layers_of(one), layers_of(dump / "two")
    assert mine["metrics"] == pytest.approx(theirs["metrics"], rel=OTHER_BLOCKS, nan_ok=True)


def test_what_one_rank_cannot_read_ends_all_with_one_sentence(dump, tmp_path):
    (tmp_path / "d").mkdir()
    bad = rows(900, 24)
    bad[899, 3] = torch.nan
    for name, x in (("a", rows(900, 24, 1)), ("b", bad)):
        write_shard(tmp_path / "d" / f"{name}.safetensors", {"h": x})
    done = shared_cli().run(
        "analyze", "d", "--out", "o", "--strict", cwd=tmp_path, block_bytes=BLOCK, ranks=2
    )
    assert done.code == 2
    sentences = set(done.err.splitlines())
    assert sum("NaN or infinite value in row 899" in s for s in sentences) == 1
    assert not (tmp_path / "o" / "results.json").exists()


def part_states(seed=0, count=5, gram=True, dtype=torch.float32):
    """States of blocks of one source, and the state of all its rows."""
    x = (rows(40 * count, 12, seed) * torch.linspace(1, 2, 12) + 3).to(dtype)
    whole, parts = LayerState(12, gram=gram), []
    for i in range(count):
        block = Block("x", 40 * i, 40 * (i + 1))
        parts.append(LayerState(12, gram=gram))
        parts[-1].update(x[block.start : block.stop], block=block)
        whole.update(x[block.start : block.stop], block=block)
    return parts, whole


def assert_same(state, other, rel):
    assert state.sources == other.sources
    mine, theirs = state.compute(), other.compute()
    assert mine.counts == theirs.counts
    assert mine.metrics == pytest.approx(theirs.metrics, rel=rel, abs=1e-13, nan_ok=True)
    grams = other.grams.about(state.grams.pilot, (other.moments.rows, other.moments.directions))
    for one, two in zip(state.grams.tensors()[1:3], grams.tensors()[1:3], strict=True):
        assert (one - two).norm() <= rel * one.norm()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    data=st.data(),
)
def test_states_merge_in_any_order_and_tree(seed, dtype, data):
    parts, whole = part_states(seed, dtype=dtype)
    straight = functools.reduce(LayerState.merge, parts)
    while len(parts) > 1:
        i, j = data.draw(st.permutations(range(len(parts))))[:2]
        merged = parts[i].merge(parts[j])
        parts = [p for k, p in enumerate(parts) if k not in (i, j)] + [merged]
    assert_same(parts[0], straight, 1e-12)
    if dtype != torch.bfloat16:
        assert_same(parts[0], whole, OTHER_BLOCKS)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 9), data=st.data())
def test_a_tree_is_the_same_whoever_finished_its_leaves(count, data):
    parts, whole = part_states(count=count)
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=3)))
    trees = []
    for a, b in itertools.pairwise([0, *cuts, count]):
        trees.append(StateTree())
        for i in range(a, b):
            trees[-1].finish((0, i), parts[i])
    joined = StateTree()
    for tree in trees:
        for place in sorted(tree.nodes):
            joined.finish(place, tree.nodes[place])
    alone = StateTree()
    for i, part in enumerate(parts):
        alone.finish((0, i), part)
    assert set(joined.nodes) == set(alone.nodes)
    for name, tensor in alone.total().state_dict().items():
        assert torch.equal(tensor, joined.total().state_dict()[name]), name
    assert_same(alone.total(), whole, OTHER_BLOCKS)


def test_leaves_that_were_cut_otherwise_lose_no_rows():
    """A run goes on from what another version left, whose leaves held fewer blocks."""
    parts, whole = part_states(count=4)
    tree = StateTree()
    for i, part in enumerate(parts):
        tree.finish((0, i % 2), part)
    assert_same(tree.total(), whole, OTHER_BLOCKS)
    assert tree.total().sources == whole.sources


def test_a_saved_tree_is_the_same_tree(tmp_path):
    parts, _ = part_states(count=7)
    tree = StateTree()
    for i, part in enumerate(parts[:-1]):
        tree.finish((0, i), part)
    tree.nodes[0, 6] = parts[-1]
    tree.save(tmp_path / "t")
    loaded = StateTree.load(tmp_path / "t")
    assert sorted(loaded.nodes) == [(0, 6), (1, 2), (2, 0)]
    assert loaded.sources == tree.sources and loaded.rows_seen == 280
    for place, state in tree.nodes.items():
        for name, tensor in state.state_dict().items():
            assert torch.equal(loaded.nodes[place].state_dict()[name], tensor)
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"cannot be read .* --no-resume"):
        StateTree.load(tmp_path / "t")


def saved(folder, states, layer="h"):
    paths = []
    for i, state in enumerate(states):
        paths.append(folder / f"{i}.state.safetensors")
        state.save(paths[-1], layer=layer)
    return paths


def test_the_merge_command(tmp_path):
    parts, whole = part_states()
    names = [path.name for path in saved(tmp_path, parts)]
    done = shared_cli().run("merge", *names, "--out", "all.state.safetensors", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out == "all.state.safetensors: <LayerState dim 12 with Gram, 200 rows>\n"
    assert_same(LayerState.load(tmp_path / "all.state.safetensors"), whole, OTHER_BLOCKS)
    again = shared_cli().run(
        "merge", names[0], "all.state.safetensors", "--out", "x.state.safetensors", cwd=tmp_path
    )
    assert again.code == 2
    assert "rows 0 to 40 of source x would count twice" in again.err
    assert not (tmp_path / "x.state.safetensors").exists()


def test_states_that_do_not_go_together_are_refused(tmp_path):
    parts, _ = part_states(count=2)
    out = tmp_path / "out.state.safetensors"
    first, second = saved(tmp_path, parts)
    refused = functools.partial(pytest.raises, InputError)
    with refused(match="is given twice"):
        merge_states([first, second, first], out)
    with refused(match=r"let it end in \.state\.safetensors"):
        merge_states([first], tmp_path / "out.bin")
    with refused(match="there is no state file"):
        merge_states([first, tmp_path / "gone.state.safetensors"], out)
    other = write_shard(tmp_path / "d.safetensors", {"a": rows()})
    with refused(match="is no aniso state"):
        merge_states([first, other], out)
    part_states(count=2, gram=False)[0][1].save(second, layer="h")
    with refused(match=r"1\.state\.safetensors does not go with the states before it"):
        merge_states([first, second], out)
    parts[1].save(second, layer="g")
    with refused(match=r"of layer h, .* of layer g; merge states of one kind and layer"):
        merge_states([first, second], out)
    assert not out.exists()
