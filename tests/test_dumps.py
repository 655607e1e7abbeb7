import errno
import itertools
import json
import os
import re
import struct

import numpy as np
import pytest
import torch
from dump_helpers import file_names, read_all, rows, write_npy, write_shard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from aniso import DumpWriter, InputError, open_dump
from aniso.dumps import dump as dump_module

FLOATS = [torch.float64, torch.float32, torch.float16]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(dump_module, "_BLOCK_BYTES", 7 * 6 * 4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", ["C", "F"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_npy_gives_the_array_in_blocks(tmp_path, small_blocks, dtype, layout, order):
    x = rows(dtype=dtype)
    stored = np.array(x.numpy(), dtype=x.numpy().dtype.newbyteorder(order), order=layout)
    dump = open_dump(write_npy(tmp_path / "h.0.npy", stored))
    read, blocks = read_all(dump["h.0"])
    assert torch.equal(read, x)
    assert (dump.layers, dump.rows, dump.dim, dump.dtype) == (("h.0",), 40, 6, dtype)
    assert dump["h.0"].bytes == x.nbytes
    assert len(blocks) == -(-40 // (28 // dtype.itemsize))
    assert all(block.rows.is_contiguous() and block.path.name == "h.0.npy" for block in blocks)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16], ids=str)
def test_safetensors_gives_every_layer_bit_for_bit(tmp_path, small_blocks, dtype):
    stored = {f"layer.{i}": rows(9 + i, 6, i, dtype) for i in (10, 2, 0)}
    dump = open_dump(write_shard(tmp_path / "d.safetensors", stored))
    assert dump.layers == ("layer.0", "layer.2", "layer.10")
    assert dump.dtype == dtype
    for name, x in stored.items():
        assert torch.equal(read_all(dump[name])[0].view(torch.uint8), x.view(torch.uint8))
    with pytest.raises(InputError, match=r"differ in rows; ask dump\[layer\]\.rows"):
        _ = dump.rows


def test_blocks_say_where_they_lie_and_pass_over_what_is_done(tmp_path, small_blocks):
    x = rows(20)
    layer = open_dump(write_npy(tmp_path / "a.npy", x))["a"]
    blocks = read_all(layer)[1]
    assert [(b.block.start, b.block.stop) for b in blocks] == [(0, 7), (7, 14), (14, 20)]
    assert {b.block.source for b in blocks} == {layer.parts[0].source}
    assert torch.equal(read_all(layer, done=lambda source: 9)[0], x[9:])
    assert list(layer.blocks(done=lambda source: 20)) == []


def test_iterating_a_dump_gives_all_layers_in_order(tmp_path, small_blocks):
    stored = {"b": rows(8, seed=1), "a": rows(3, seed=2)}
    dump = open_dump(write_shard(tmp_path / "d.safetensors", stored, ["b", "a"]))
    assert torch.equal(torch.cat([b.rows for b in dump]), torch.cat([stored["b"], stored["a"]]))


@pytest.mark.parametrize("stated", [["z", "m", "a"], None])
def test_shards_follow_in_natural_order_and_layers_as_stated(tmp_path, stated):
    shards = {n: {k: rows(4, seed=n) + i for i, k in enumerate("amz")} for n in (1, 2, 10)}
    for n in (10, 1, 2):
        write_shard(tmp_path / f"rows-{n}.safetensors", shards[n], stated)
    dump = open_dump(tmp_path)
    assert dump.layers == (tuple(stated) if stated else ("a", "m", "z"))
    for name in "amz":
        expected = torch.cat([shards[n][name] for n in (1, 2, 10)])
        assert torch.equal(read_all(dump[name])[0], expected)


def test_a_folder_of_npy_files_is_a_layer_per_file(tmp_path):
    for name in ("h.10", "h.9", ".hidden"):
        write_npy(tmp_path / f"{name}.npy", rows())
    (tmp_path / "notes.txt").write_text("not an array")
    assert open_dump(tmp_path).layers == ("h.9", "h.10")


def test_a_folder_of_both_formats_leaves_none_out_in_silence(tmp_path):
    write_npy(tmp_path / "a.npy", rows())
    write_shard(tmp_path / "b.safetensors", {"b": rows()})
    try:
        layers = open_dump(tmp_path).layers
    except InputError as error:
        assert str(tmp_path) in str(error)
    else:
        assert set(layers) == {"a", "b"}


@pytest.mark.parametrize("other", [rows(4, 7), rows(4, 6, dtype=torch.float16)])
def test_shards_that_disagree_name_both_files(tmp_path, other):
    write_shard(tmp_path / "rows-0.safetensors", {"a": rows(4, 6), "b": rows()})
    write_shard(tmp_path / "rows-1.safetensors", {"a": other, "b": rows()})
    dump = open_dump(tmp_path)
    assert read_all(dump["b"])[0].shape == (80, 6)
    with pytest.raises(InputError, match="has no layer 'c'; it has a, b"):
        _ = dump["c"]
    with pytest.raises(InputError, match=r"rows-0\.safetensors, but .*rows-1\.safetensors"):
        _ = dump["a"]


def test_writer_round_trip_over_several_shards(tmp_path):
    batches = [{k: rows(n, 6, n, torch.bfloat16) for k in ("z", "a")} for n in (3, 1, 5, 2)]
    with DumpWriter(tmp_path / "new", ["z", "a"], shard_bytes=4 * 6 * 2) as writer:
        for batch in batches:
            for name, x in batch.items():
                writer.append(name, x.t().contiguous().t())
    files = [f"{name}.{i:05d}.safetensors" for name in ("z", "a") for i in range(3)]
    assert file_names(tmp_path / "new") == sorted([*files, "rows.index.json"])
    facts = json.loads((tmp_path / "new" / "rows.index.json").read_bytes())
    assert facts == {"rows": {"z": 11, "a": 11}, "files": files}
    assert [len(load_file(tmp_path / "new" / f)[f[0]]) for f in files] == [4, 4, 3] * 2
    dump = open_dump(tmp_path / "new")
    assert dump.layers == ("z", "a")
    for name in dump.layers:
        assert torch.equal(read_all(dump[name])[0], torch.cat([b[name] for b in batches]))


def test_the_stated_order_holds_where_the_first_shard_lacks_a_layer(tmp_path):
    with DumpWriter(tmp_path, ["a", "b", "c"]) as writer:
        writer.append("a", rows())
        writer.append("c", rows())
        writer.append("b", rows())
    assert open_dump(tmp_path).layers == ("a", "b", "c")


def test_the_writer_copies_rows(tmp_path):
    x = rows()
    with DumpWriter(tmp_path, ["a"]) as writer:
        writer.append("a", x)
        expected = x.clone()
        x.zero_()
    assert torch.equal(read_all(open_dump(tmp_path)["a"])[0], expected)


def test_the_writer_keeps_an_existing_dump(tmp_path):
    path = write_shard(tmp_path / "x.safetensors", {"a": rows()})
    before = path.read_bytes()
    with pytest.raises(InputError, match="holds a dump already; choose another"):
        DumpWriter(tmp_path, ["a"])
    assert path.read_bytes() == before
    assert file_names(tmp_path) == ["x.safetensors"]


def test_an_exception_leaves_whole_files_alone(tmp_path):
    with (
        pytest.raises(ZeroDivisionError),
        DumpWriter(tmp_path, ["a"], shard_bytes=4 * 6 * 4) as writer,
    ):
        writer.append("a", rows(7))
        raise ZeroDivisionError
    assert file_names(tmp_path) == ["a.00000.safetensors"]
    assert open_dump(tmp_path).rows == 4


def test_a_file_has_its_size_from_the_first_row_on_and_no_name_before_the_last(tmp_path):
    writer = DumpWriter(tmp_path, ["a"], shard_bytes=1000 * 24)
    writer.append("a", rows(3))
    (partial,) = tmp_path.iterdir()
    header = 8 + int.from_bytes(partial.read_bytes()[:8], "little")
    assert partial.name.startswith(".a.00000.safetensors.") and header % 8 == 0
    assert partial.stat().st_size == header + 1000 * 24
    assert partial.read_bytes()[header : header + 72] == rows(3).numpy().tobytes()
    writer.finish()
    assert (tmp_path / "a.00000.safetensors").stat().st_size == header + 72


@pytest.mark.parametrize("other", [rows(4, 7), rows(4).double()])
def test_rows_of_unlike_kind_are_refused_and_leave_no_file(tmp_path, other):
    with (
        pytest.raises(InputError, match=r"layer a gave rows of .* after rows of 6 × torch.float32"),
        DumpWriter(tmp_path, ["a"]) as writer,
    ):
        writer.append("a", rows(4))
        writer.append("a", other)
    assert file_names(tmp_path) == []


@pytest.mark.parametrize("call", ["pwrite", "fsync", "truncate"])
@pytest.mark.parametrize("nth", [0, 1, 3])
def test_a_full_disk_is_one_sentence_and_leaves_whole_files(tmp_path, monkeypatch, call, nth):
    real, calls = getattr(os, call), itertools.count()

    def full(*arguments):
        if next(calls) >= nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    def write():
        with DumpWriter(tmp_path, ["a", "b"], shard_bytes=4 * 24) as writer:
            # Behind the test for a writable folder.
            monkeypatch.setattr(os, call, full)
            writer.append("a", rows(7))
            writer.append("b", rows(7))

    with pytest.raises(InputError, match=r"rows cannot be written to .* \(No space left on device"):
        write()
    left = file_names(tmp_path)
    assert all(re.fullmatch(r"[ab]\.0000\d\.safetensors", name) for name in left), left
    assert all(len(load_file(tmp_path / name)[name[0]]) in (3, 4) for name in left)


def test_a_dump_that_lacks_a_file_of_its_index_is_refused(tmp_path):
    with DumpWriter(tmp_path, ["a", "b"], shard_bytes=4 * 24) as writer:
        for name in ("a", "b"):
            writer.append(name, rows(7))
    (tmp_path / "b.00001.safetensors").rename(tmp_path / "kept")
    with pytest.raises(InputError, match=r"names 'b\.00001\.safetensors', which is not there"):
        open_dump(tmp_path)
    write_shard(tmp_path / "b.00001.safetensors", {"b": rows(2)})
    with pytest.raises(InputError, match="states 7 rows of layer 'b', its files hold 6; bring"):
        open_dump(tmp_path)
    for text in ("[]", "{", '{"files": 3, "rows": {}}', '{"files": ["../x"], "rows": {}}'):
        (tmp_path / "rows.index.json").write_text(text)
        with pytest.raises(InputError, match=r"rows\.index\.json"):
            open_dump(tmp_path)
    (tmp_path / "rows.index.json").unlink()
    assert open_dump(tmp_path)["b"].rows == 6


def test_the_source_follows_the_content(tmp_path):
    (tmp_path / "copy").mkdir()
    source = open_dump(write_npy(tmp_path / "a.npy", rows()))["a"].parts[0].source
    (tmp_path / "a.npy").rename(tmp_path / "copy" / "a.npy")
    assert open_dump(tmp_path / "copy" / "a.npy")["a"].parts[0].source == source
    (tmp_path / "copy" / "a.npy").rename(tmp_path / "b.npy")
    renamed = open_dump(tmp_path / "b.npy")["b"].parts[0].source
    assert renamed.split("@")[1] == source.split("@")[1]
    other = rows()
    other[17, 3] = torch.nextafter(other[17, 3], torch.tensor(9.0))
    changed = open_dump(write_npy(tmp_path / "a.npy", other))["a"].parts[0].source
    assert changed.split("@")[1] != source.split("@")[1]


def test_arrays_of_one_file_are_sources_of_their_own(tmp_path):
    dump = open_dump(write_shard(tmp_path / "d.safetensors", {"a": rows(), "b": rows()}))
    assert dump["a"].parts[0].source != dump["b"].parts[0].source


GOOD_NPY = b"\x93NUMPY\x01\x00v\x00" + (
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }".ljust(117) + b"\n" + bytes(24)
)


def good_safetensors(metadata=None):
    header = {"a": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]}}
    text = json.dumps(header | ({"__metadata__": metadata} if metadata else {})).encode()
    return struct.pack("<Q", len(text)) + text + bytes(24)


GOOD = {"f.npy": GOOD_NPY, "f.safetensors": good_safetensors()}


def opens_or_is_refused(path, data):
    path.write_bytes(data)
    try:
        for block in itertools.islice(open_dump(path), 3):
            assert block.rows.ndim == 2
    except InputError as error:
        assert str(path) in str(error)
        return False
    return True


@pytest.mark.parametrize("name", ["f.npy", "f.safetensors"])
def test_every_truncation_is_refused(tmp_path, name):
    path, good = tmp_path / name, GOOD[name]
    assert opens_or_is_refused(path, good)
    assert not any(opens_or_is_refused(path, good[:n]) for n in range(len(good)))


# NumPy warns of headers as Python 2 wrote them; its say, not ours.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::SyntaxWarning")
@settings(derandomize=True, max_examples=200)
@given(
    st.sampled_from(sorted(GOOD)),
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), min_size=1, max_size=3),
)
@example("f.npy", [(47, ord("n")), (79, ord("{"))])
@example("f.npy", [(21, ord("0"))])
@example("f.npy", [(35, 0x8E), (49, ord("B"))])
def test_damaged_headers_open_or_are_refused(tmp_path_factory, name, damage):
    damaged = bytearray(GOOD[name])
    for position, value in damage:
        damaged[min(position, len(damaged) - 25)] = value
    opens_or_is_refused(tmp_path_factory.getbasetemp() / name, bytes(damaged))


@pytest.mark.parametrize("stated", ["{", "5", '{"a": 1}', "[[1]]"])
def test_a_layer_order_that_is_none_is_refused(tmp_path, stated):
    data = good_safetensors({"aniso.layers": stated})
    opens_or_is_refused(tmp_path / "f.safetensors", data)


def test_an_archive_renamed_to_npy_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", rows().numpy())
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(InputError, match=r"a\.npy"):
        open_dump(tmp_path / "a.npy")


def test_a_dangling_link_in_a_folder_is_refused(tmp_path):
    (tmp_path / "rows-0.npy").symlink_to(tmp_path / "gone.npy")
    with pytest.raises(InputError, match=r"rows-0\.npy"):
        open_dump(tmp_path)
