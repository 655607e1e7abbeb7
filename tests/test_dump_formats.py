"""Every format gives the rows that were written, and every hostile file one sentence."""

import fcntl
import json
import os
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from dump_helpers import metrics_of, read_all, rows, write_npy, write_shard

from aniso import InputError, analyze, open_dump
from aniso.dumps import dump as dump_module
from aniso.dumps.pt import pt_parts


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(dump_module, "_BLOCK_BYTES", 7 * 6 * 4)


def bits(x):
    return x.view(torch.int16).numpy().view(np.uint16)


def vectors(x, kind="fixed"):
    flat = pa.array(x.reshape(-1).numpy())
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(flat, x.shape[1])
    offsets = pa.array(range(0, x.numel() + 1, x.shape[1]), pa.int32())
    return pa.ListArray.from_arrays(offsets, flat)


def table(x, kind="fixed", **ids):
    columns = {"h.0": vectors(x, kind), **{name: pa.array(v.numpy()) for name, v in ids.items()}}
    return pa.table(columns)


def write_parquet(path, x, kind="fixed", **ids):
    pq.write_table(table(x, kind, **ids), path, row_group_size=11)
    return path


def write_ipc(path, x, kind="fixed", **ids):
    with pa.OSFile(str(path), "wb") as sink:
        new = pa.ipc.new_stream if path.suffix == ".arrow" else pa.ipc.new_file
        with new(sink, table(x, kind, **ids).schema) as writer:
            writer.write_table(table(x, kind, **ids), max_chunksize=9)
    return path


def write_zarr(path, x, version=3, **ids):
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    for name, value in {"h.0": x, **ids}.items():
        chunks = (13, 4)[: value.ndim]
        group.create_array(name, data=value.numpy(), chunks=chunks)
    return path


def write_pt(path, x, **ids):
    torch.save({"h.0": x, **ids}, path)
    return path


WRITERS = {
    "d.safetensors": lambda path, x, **ids: write_shard(path, {"h.0": x, **ids}),
    "d.parquet": write_parquet,
    "d.arrow": write_ipc,
    "d.feather": write_ipc,
    "d.zarr": write_zarr,
    "d.pt": write_pt,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_every_format_gives_rows_and_ids_in_blocks(tmp_path, name, dtype):
    x, tokens, mask = rows(dtype=dtype), torch.arange(40) * 7, torch.arange(40) % 3 > 0
    ids = {"input_ids": tokens, "attention_mask": mask, "doc_ids": (tokens // 50).int()}
    layer = open_dump(WRITERS[name](tmp_path / name, x, **ids))["h.0"]
    read, blocks = read_all(layer)
    assert (layer.rows, layer.dim, layer.dtype) == (40, 6, dtype)
    assert torch.equal(read, x) and len(blocks) == -(-40 // (28 // dtype.itemsize))
    assert set(layer.ids) == {"token_ids", "attention_mask", "document"}
    assert torch.equal(torch.cat([b.ids["token_ids"] for b in blocks]), tokens)
    assert torch.equal(torch.cat([b.ids["attention_mask"] for b in blocks]), mask)
    assert torch.equal(torch.cat([b.ids["document"] for b in blocks]), (tokens // 50).int())


@pytest.mark.parametrize("name", WRITERS)
def test_any_rows_may_be_read_in_any_order(tmp_path, name):
    x = rows()
    (part,) = open_dump(WRITERS[name](tmp_path / name, x))["h.0"].parts
    for start, stop in ((30, 40), (3, 27), (0, 40), (26, 27), (5, 5), (0, 1)):
        assert torch.equal(part.read(start, stop, None), x[start:stop])


@pytest.mark.parametrize("name", WRITERS)
def test_files_are_not_mapped_so_that_a_cut_cannot_kill_the_process(tmp_path, name):
    (part,) = open_dump(WRITERS[name](tmp_path / name, rows()))["h.0"].parts
    part.read(3, 9, None)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("stated", [b"big", b"", b"l"])
def test_a_torch_file_of_other_byte_order_is_refused(tmp_path, stated):
    torch.save({"h": rows()}, tmp_path / "l.pt")
    with ZipFile(tmp_path / "l.pt") as old, ZipFile(tmp_path / "b.pt", "w") as new:
        for member in old.namelist():
            new.writestr(member, stated if member.endswith("byteorder") else old.read(member))
    with pytest.raises(InputError, match=r"b\.pt cannot be loaded .*bytes in the order"):
        open_dump(tmp_path / "b.pt")


def test_a_torch_that_does_not_tell_where_tensors_lie_is_named(tmp_path, monkeypatch):
    torch.save({"h": rows()}, tmp_path / "a.pt")
    monkeypatch.setattr(torch, "load", lambda *given, **named: {"h": rows()})
    with pytest.raises(InputError, match=r"a\.pt needs torch 2\.10 or newer"):
        open_dump(tmp_path / "a.pt")


VIEWS = {
    "spaced": lambda x: x[:, 1:5],
    "columns": lambda x: x.t().contiguous().t(),
    "every other value": lambda x: x[:, ::2],
    "every other row": lambda x: x[3::2],
    "turned": lambda x: x.t().contiguous().t()[5:30, 1::3],
    "one column": lambda x: x[:, :1],
    "one row": lambda x: x[7:8],
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_saved_by_torch_are_read_as_they_were(tmp_path, name):
    x = VIEWS[name](rows())
    torch.save({"first": rows(9, 3), "h": x, "ids": torch.arange(80)[::2]}, tmp_path / "v.pt")
    parts = {part.key: part for part in pt_parts(tmp_path / "v.pt")}
    part = parts["h"]
    assert parts["ids"].read(3, 9, None).tolist() == [6, 8, 10, 12, 14, 16]
    assert torch.equal(part.read(0, len(x), None), x)
    assert torch.equal(part.read(len(x) // 2, len(x), None), x[len(x) // 2 :])


def test_masked_rows_are_left_out_of_an_analysis(tmp_path):
    x, mask = rows(), torch.arange(40) % 3 > 0
    path = write_shard(tmp_path / "d.safetensors", {"a": x, "attention_mask": mask.long()})
    report = analyze(path, progress=False)
    kept = analyze(write_npy(tmp_path / "a.npy", x[mask]), progress=False)
    assert report.layers["a"].counts["masked_rows"] == 14
    assert metrics_of(report, "a") == pytest.approx(metrics_of(kept, "a"), rel=1e-9, nan_ok=True)


def test_ids_of_a_folder_of_npy_files_belong_to_its_layers(tmp_path):
    for name in ("h.0", "h.1"):
        write_npy(tmp_path / f"{name}.npy", rows())
    write_npy(tmp_path / "token_ids.npy", torch.arange(40))
    dump = open_dump(tmp_path)
    assert dump.layers == ("h.0", "h.1")
    _, blocks = read_all(dump["h.1"])
    assert torch.equal(torch.cat([b.ids["token_ids"] for b in blocks]), torch.arange(40))


def test_hidden_states_of_vllm_are_a_layer_each(tmp_path):
    stored = {}
    for request, n in (("a-2", 5), ("a-10", 12)):
        x = torch.randn(n, 3, 6).bfloat16()
        stored[request] = x
        tensors = {"hidden_states": x, "token_ids": torch.arange(n)}
        write_shard(tmp_path / f"{request}.safetensors", tensors)
        (tmp_path / f"{request}.safetensors.lock").touch()
    dump = open_dump(tmp_path)
    assert dump.layers == ("hidden_states.0", "hidden_states.1", "hidden_states.2")
    for i, name in enumerate(dump.layers):
        read, blocks = read_all(dump[name])
        assert torch.equal(read, torch.cat([x[:, i] for x in stored.values()]))
        tokens = torch.cat([b.ids["token_ids"] for b in blocks])
        assert torch.equal(tokens, torch.cat([torch.arange(5), torch.arange(12)]))


def test_a_file_that_vllm_still_writes_is_refused(tmp_path):
    path = write_shard(tmp_path / "a.safetensors", {"a": rows()})
    with (tmp_path / "a.safetensors.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="is being written"):
            open_dump(path)
    assert open_dump(path).rows == 40


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("shape", [(40,), (40, 1)])
def test_fp8_rows_are_multiplied_by_their_scales(tmp_path, dtype, shape):
    x = rows().to(dtype)
    scale = torch.rand(shape) + 0.5
    dump = open_dump(
        write_shard(tmp_path / "d.safetensors", {"a": x, "a_scale": scale, "b": x.clone()})
    )
    assert dump.layers == ("a", "b") and dump.dtype == torch.float32
    assert torch.equal(read_all(dump["a"])[0], x.float() * scale.reshape(40, 1))
    assert torch.equal(read_all(dump["b"])[0], x.float())


def test_fp8_hidden_states_have_scales_per_row_or_per_row_and_layer(tmp_path):
    x = torch.randn(9, 3, 6).to(torch.float8_e4m3fn)
    for name, scale in (("row", torch.rand(9)), ("both", torch.rand(9, 3))):
        tensors = {"hidden_states": x, "hidden_states_scale": scale}
        dump = open_dump(write_shard(tmp_path / f"{name}.safetensors", tensors))
        expected = x[:, 1].float() * (scale if scale.ndim == 1 else scale[:, 1])[:, None]
        assert torch.equal(read_all(dump["hidden_states.1"])[0], expected)


@pytest.mark.parametrize("scale", [torch.rand(39), torch.rand(40, 6), torch.arange(40)])
def test_scales_that_fit_no_rows_are_refused(tmp_path, scale):
    x = rows().to(torch.float8_e4m3fn)
    with pytest.raises(InputError, match=r"a_scale.*write them again"):
        open_dump(write_shard(tmp_path / "d.safetensors", {"a": x, "a_scale": scale}))


@pytest.mark.parametrize("name", ["h.bin", "h.raw", "h.npy", "h.parquet", "h.zarr"])
def test_bfloat16_as_integers_is_named_beside_the_file(tmp_path, name):
    x, path = rows(dtype=torch.bfloat16), tmp_path / name
    if path.suffix == ".npy":
        np.save(path, bits(x))
    elif path.suffix == ".parquet":
        flat = pa.array(bits(x).reshape(-1))
        pq.write_table(pa.table({"h": pa.FixedSizeListArray.from_arrays(flat, 6)}), path)
    elif path.suffix == ".zarr":
        zarr.create_array(str(path), data=bits(x), chunks=(7, 6))
    else:
        path.write_bytes(bits(x).tobytes())
    with pytest.raises(InputError, match=rf"{name}.*(dtype|write its)"):
        _ = open_dump(path)["h"]
    (tmp_path / f"{name}.json").write_text('{"dtype": "bfloat16", "dim": 6}')
    layer = open_dump(path)["h"]
    assert layer.dtype == torch.bfloat16
    assert torch.equal(read_all(layer)[0], x)


SIDECARS = {
    "[1]": "no JSON object",
    "{": "is no JSON",
    "[" * 9999: "is no JSON",
    '{"dtype": "int8", "dim": 6}': "states the dtype 'int8'",
    '{"dtype": "float32", "dim": 0}': "states the dim '0'",
    '{"dtype": "float32", "dim": 7}': "no whole number of rows",
    '{"dtype": "float32"}': "does not say what it holds",
}


@pytest.mark.parametrize("text", SIDECARS, ids=SIDECARS.values())
def test_descriptions_that_describe_nothing_are_refused(tmp_path, text):
    (tmp_path / "a.bin").write_bytes(bytes(960))
    (tmp_path / "a.bin.json").write_text(text)
    with pytest.raises(InputError, match=SIDECARS[text]):
        open_dump(tmp_path / "a.bin")


@pytest.mark.parametrize("kind", ["fixed", "list"])
@pytest.mark.parametrize("name", ["d.parquet", "d.arrow", "d.feather"])
def test_lists_of_either_kind_are_rows(tmp_path, name, kind):
    x = rows()
    dump = open_dump(WRITERS[name](tmp_path / name, x, kind))
    assert torch.equal(read_all(dump["h.0"])[0], x)


@pytest.mark.parametrize("bad", [[1.0], None, [1.0, 2.0, 3.0], [None, 1.0]])
def test_rows_of_unlike_length_are_refused(tmp_path, bad):
    column = pa.array([[1.0, 2.0]] * 20 + [bad], pa.list_(pa.float32()))
    pq.write_table(pa.table({"a": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet, column 'a', has a missing value or a row"):
        read_all(open_dump(tmp_path / "a.parquet")["a"])


def write_dataset(folder, x):
    folder.mkdir()
    for i in (0, 1):
        write_ipc(folder / f"data-{i}.arrow", x[20 * i : 20 * (i + 1)])
    files = [{"filename": f"data-{i}.arrow"} for i in (0, 1)]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_a_saved_dataset_is_read_by_its_list_of_files(tmp_path):
    x = rows()
    folder = write_dataset(tmp_path / "set", x)
    write_ipc(folder / "cache-1.arrow", x)
    assert torch.equal(read_all(open_dump(folder)["h.0"])[0], x)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["set"]}')
    with pytest.raises(InputError, match="several splits"):
        open_dump(tmp_path)


def write_index(folder, places):
    text = json.dumps({"weight_map": places})
    (folder / "model.safetensors.index.json").write_text(text)


def test_an_index_says_which_file_holds_a_layer(tmp_path):
    stored = {f"h.{i}": rows(seed=i) for i in (0, 1, 10)}
    places = {name: f"model-{i}.safetensors" for i, name in enumerate(stored)}
    for name, file in places.items():
        write_shard(tmp_path / file, {name: stored[name], "other": rows()})
    write_shard(tmp_path / "unrelated.safetensors", {"x": rows()})
    write_index(tmp_path, places)
    dump = open_dump(tmp_path)
    assert dump.layers == tuple(stored)
    assert all(torch.equal(read_all(dump[name])[0], x) for name, x in stored.items())


@pytest.mark.parametrize("way", ["../b.safetensors", "/etc/passwd", "link.safetensors"])
def test_an_index_cannot_leave_its_folder(tmp_path, way):
    (tmp_path / "dump").mkdir()
    outside = write_shard(tmp_path / "b.safetensors", {"a": rows()})
    (tmp_path / "dump" / "link.safetensors").symlink_to(outside)
    write_index(tmp_path / "dump", {"a": way})
    with pytest.raises(InputError, match="no file of its folder"):
        open_dump(tmp_path / "dump")
    folder = write_dataset(tmp_path / "set", rows())
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../" + way}]}))
    with pytest.raises(InputError, match="no file of its folder"):
        open_dump(folder)


def test_an_index_that_does_not_fit_is_refused(tmp_path):
    write_shard(tmp_path / "a.safetensors", {"a": rows()})
    for places, sentence in (
        ({"a": "b.safetensors"}, "is not there"),
        ({"c": "a.safetensors"}, "'c', which a.safetensors lacks"),
        ({"a": 5}, "has no weight_map"),
        ([], "has no weight_map"),
    ):
        write_index(tmp_path, places)
        with pytest.raises(InputError, match=sentence):
            open_dump(tmp_path)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("pwned"),)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": rows(), "b": Evil()}, tmp_path / "a.pt")
    np.save(tmp_path / "b.npy", np.array([Evil()]), allow_pickle=True)
    write_zarr(tmp_path / "c.zarr", rows(), version=2)
    description = tmp_path / "c.zarr" / "h.0" / ".zarray"
    for codec in ({"compressor": {"id": "pickle"}}, {"filters": [{"id": "pickle"}]}):
        description.write_text(json.dumps(json.loads(description.read_text()) | codec))
        with pytest.raises(InputError, match=r"c\.zarr"):
            open_dump(tmp_path / "c.zarr")
    for name in ("a.pt", "b.npy"):
        with pytest.raises(InputError, match=name):
            open_dump(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("version", [2, 3])
def test_zarr_of_either_version(tmp_path, version):
    dump = open_dump(write_zarr(tmp_path / "a.zarr", rows(), version))
    assert torch.equal(read_all(dump["h.0"])[0], rows())


def test_zarr_chunks_that_do_not_fit_in_memory_are_refused(tmp_path):
    zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(1 << 40, 64), chunks=(1 << 24, 64), dtype="f4"
    )
    with pytest.raises(InputError, match="beyond 256 MiB"):
        open_dump(tmp_path / "a.zarr")


def test_a_tensor_alone_and_old_files(tmp_path):
    torch.save(rows(), tmp_path / "a.pt")
    assert torch.equal(read_all(open_dump(tmp_path / "a.pt")["a"])[0], rows())
    torch.save(rows(), tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"b\.pt is no file of torch\.save since"):
        open_dump(tmp_path / "b.pt")
    torch.save([rows()], tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"c\.pt is no dict"):
        open_dump(tmp_path / "c.pt")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("d.parquet", "pyarrow", "parquet"),
        ("d.arrow", "pyarrow", "parquet"),
        ("d.zarr", "zarr", "zarr"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, name, module, extra):
    path = WRITERS[name](tmp_path / name, rows())
    for known in [m for m in sys.modules if m.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{module}; install it with pip .*aniso\[{extra}\]"):
        open_dump(path)


@pytest.mark.parametrize("name", ["d.safetensors", "d.arrow", "d.feather", "d.pt"])
def test_a_file_cut_while_it_is_read_is_named(tmp_path, name):
    path = WRITERS[name](tmp_path / name, rows(4000))
    blocks = open_dump(path)["h.0"].blocks()
    next(blocks)
    with path.open("r+b") as file:
        file.truncate(50_000)
    with pytest.raises(
        InputError, match=rf"{name} (ends at byte 50000|has changed while it was read)"
    ):
        for _ in blocks:
            pass


@pytest.mark.parametrize("name", ["d.arrow", "d.feather", "d.pt"])
def test_a_file_cut_before_a_read_is_named(tmp_path, name):
    path = WRITERS[name](tmp_path / name, rows(4000))
    part = open_dump(path)["h.0"].parts[0]
    assert part.read(0, 9, None).shape == (9, 6)
    other = open_dump(path)["h.0"].parts[0]
    os.truncate(path, 50_000)
    with pytest.raises(InputError, match=rf"{name} ends at byte 50000, inside its rows"):
        part.read(3000, 3009, None)
    path.unlink()
    with pytest.raises(InputError, match=rf"{name} (has gone while|cannot be read \(No such file)"):
        other.read(0, 9, None)
