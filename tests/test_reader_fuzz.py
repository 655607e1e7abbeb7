"""Damaged and hostile files: every reader gives rows or one sentence that names the file.

ANISO_FUZZ=100000 tries as many inputs per test; tests/fuzz_readers.py does so without pytest.
"""

import itertools
import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc

import fuzz_readers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from dump_helpers import read_all, rows
from fuzz_readers import fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_dump_formats import vectors, write_parquet, write_zarr

from aniso import InputError, open_dump
from aniso.dumps._unpacked import ParquetPages, refuse_unpacking

EXAMPLES = int(os.environ.get("ANISO_FUZZ", "150"))
# What a reader may take besides ten times the input: buffers of fixed size, imports, messages.
FIXED_BYTES = 1 << 26
SECONDS = 5.0
often = settings(
    max_examples=EXAMPLES,
    derandomize="ANISO_FUZZ" not in os.environ,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def opens_or_is_refused(path, size):
    """Reads all that is there; refusals name the file, and neither takes long or much memory."""
    began = time.perf_counter()
    tracemalloc.start()
    try:
        for block in itertools.islice(open_dump(path), 20):
            assert block.rows.ndim == 2
            assert block.rows.isnan().numel() == block.rows.numel()
    except InputError as error:
        assert path.name in str(error), error
        assert "\n" not in str(error), error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 10 * size + FIXED_BYTES
    assert time.perf_counter() - began < SECONDS


def test_damaged_files_of_every_format():
    found = fuzz(20 * EXAMPLES)
    assert not found.findings
    assert found.inputs.keys() == fuzz_readers.WEIGHTS.keys()
    assert all(0 < found.read[kind] < count for kind, count in found.inputs.items())


def reported(folder, count, change=""):
    """What a batch finds in a process of its own, whose address space was never larger before."""
    sign, report = folder / "sign", folder / "report"
    sign.write_bytes(bytes(8))
    run = f"fuzz_readers.batch(0, 0, {count}, Path({str(sign)!r}), Path({str(report)!r}))"
    code = f"from pathlib import Path\nimport fuzz_readers\n{change}\n{run}"
    environment = {**os.environ, **fuzz_readers.ENVIRONMENT}
    subprocess.run([sys.executable, "-P", "-c", code], env=environment, check=True)
    return json.loads(report.read_text())["findings"]


def test_the_fuzzer_finds_readers_that_fail_dawdle_or_take_memory(tmp_path):
    assert reported(tmp_path, 3) == []
    assert len(reported(tmp_path, 3, "fuzz_readers.SECONDS = 0.0")) == 3
    assert "IndexError" in reported(tmp_path, 1, "fuzz_readers.read_all = lambda path: [][0]")[0]
    takes = "fuzz_readers.read_all = lambda path: len(bytes(1 << 28)) and 0"
    assert "MiB for" in reported(tmp_path, 2, takes)[-1]


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_arrow_buffers_that_state_an_absurd_size_are_refused(tmp_path, codec):
    path, x = tmp_path / "d.feather", pa.table({"a": vectors(torch.ones(4000, 64))})
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, x.schema, options=options) as f:
        f.write_table(x)
    assert torch.equal(read_all(open_dump(path)["a"])[0], torch.ones(4000, 64))
    data = path.read_bytes()
    magic = {"lz4": b"\x04\x22\x4d\x18", "zstd": b"\x28\xb5\x2f\xfd"}[codec]
    packed = struct.pack("<q", 4000 * 64 * 4) + magic
    assert data.count(packed) == 1
    path.write_bytes(data.replace(packed, struct.pack("<q", 1 << 40) + magic))
    with pytest.raises(InputError, match=r"d\.feather has a batch that states that .* unpack to"):
        open_dump(path)


def test_parquet_pages_that_state_an_absurd_size_are_refused(tmp_path):
    path = write_parquet(tmp_path / "d.parquet", rows(9, 4))
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(0)
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(path.read_bytes())
    # A page header begins with its type, two bytes, then the size unpacked, a varint.
    assert data[begin + 2] == 0x15
    data[begin + 3 : begin + 5] = b"\xff\x7f"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"d\.parquet"):
        list(open_dump(path)["h.0"].blocks())
    pages = ParquetPages(write_parquet(tmp_path / "e.parquet", rows(9, 4)))
    pages.check(0, "h.0.list.element")
    with pytest.raises(InputError, match="unpack to 2,000,000,000"):
        refuse_unpacking(2_000_000_000, 1000, "a page")
    refuse_unpacking(2_000_000_000, 20_000_000, "a page")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("sharded", [False, True])
def test_zarr_chunks_that_state_an_absurd_size_are_refused(tmp_path, version, sharded):
    if sharded and version == 2:
        return
    path, shards = tmp_path / "d.zarr", {"shards": (8, 4)} if sharded else {}
    x = torch.ones(8, 4)
    zarr.create_array(str(path), data=x.numpy(), chunks=(4, 4), zarr_format=version, **shards)
    assert torch.equal(read_all(open_dump(path)["d"])[0], x)
    (chunk, *_) = sorted(p for p in path.rglob("*") if p.is_file() and "z" not in p.name)
    data = bytearray(chunk.read_bytes())
    begin = data.index(b"\x28\xb5\x2f\xfd")
    # A single segment whose content size takes four bytes.
    data[begin + 4 : begin + 9] = b"\xa0" + struct.pack("<I", 1 << 30)
    chunk.write_bytes(data)
    with pytest.raises(InputError, match=r"unpacks to 1,073,741,824 bytes where a chunk has 64"):
        list(open_dump(path)["d"].blocks())


def test_a_zarr_array_that_states_rows_it_does_not_store_is_refused(tmp_path):
    path = write_zarr(tmp_path / "d.zarr", rows(9, 4))
    facts = json.loads((path / "h.0" / "zarr.json").read_text())
    facts["shape"] = [1 << 40, 4]
    (path / "h.0" / "zarr.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"of which .* are stored"):
        open_dump(path)


def test_a_zarr_array_of_many_more_chunks_than_files_is_refused(tmp_path):
    path = write_zarr(tmp_path / "d.zarr", rows(9, 4))
    facts = json.loads((path / "h.0" / "zarr.json").read_text())
    facts["shape"][0] = 13 * 1001
    (path / "h.0" / "zarr.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"states 1,001 chunks, \d files are there; bring"):
        open_dump(path)
    facts["shape"][0] = 13 * 1000
    (path / "h.0" / "zarr.json").write_text(json.dumps(facts))
    assert open_dump(path)["h.0"].rows == 13_000


@pytest.mark.parametrize("suffix", ["safetensors", "npy", "parquet", "arrow", "feather", "pt"])
def test_files_of_anything(folder, suffix):
    starts = {"npy": b"\x93NUMPY\x01\x00", "pt": b"PK\x03\x04", "feather": b"ARROW1\x00\x00"}

    @often
    @given(st.binary(min_size=1, max_size=300), st.booleans())
    def check(data, begun):
        data = starts.get(suffix, b"PAR1") * begun + data
        (folder / f"any.{suffix}").write_bytes(data)
        opens_or_is_refused(folder / f"any.{suffix}", len(data))

    check()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.sampled_from(["F32", "BF16", "bfloat16", "../x", "a", "f.safetensors"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["a", "dtype", "shape", "data_offsets", "dim", "weight_map", "filename",
                         "_data_files", "__metadata__"]), inner, max_size=3),
)  # fmt: skip


@often
@given(JSON, st.sampled_from(["", "[" * 9000, "}", "\0"]))
def test_headers_and_descriptions_of_any_json(tmp_path_factory, value, more):
    folder = tmp_path_factory.getbasetemp() / "json"
    (folder / "set").mkdir(parents=True, exist_ok=True)
    (folder / "index").mkdir(exist_ok=True)
    text = (json.dumps(value) + more).encode()
    (folder / "h.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
    (folder / "h.raw").write_bytes(bytes(960))
    (folder / "h.raw.json").write_bytes(text)
    (folder / "index" / "m.safetensors.index.json").write_bytes(text)
    (folder / "set" / "state.json").write_bytes(text)
    (folder / "set" / "dataset_info.json").write_bytes(text)
    for name in ("h.safetensors", "h.raw", "index", "set"):
        opens_or_is_refused(folder / name, 1000 + len(text))


def test_sizes_that_a_file_does_not_have_are_refused_before_memory_is_taken(folder):
    shapes = {"a": {"dtype": "F32", "shape": [1 << 40, 6], "data_offsets": [0, 24 << 40]}}
    text = json.dumps(shapes).encode()
    (folder / "big.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    (folder / "long.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    header = b"{'descr': '<f4', 'fortran_order': True, 'shape': (1099511627776, 6), }"
    (folder / "big.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + header.ljust(117) + b"\n")
    for name in ("big.safetensors", "long.safetensors", "big.npy"):
        with pytest.raises(InputError, match=name):
            open_dump(folder / name)
        opens_or_is_refused(folder / name, 1000)
