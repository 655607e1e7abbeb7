"""Damaged and hostile files: every reader gives rows or one sentence that names the file.

ANISO_FUZZ=100000 tries as many inputs per format.
"""

import itertools
import json
import os
import struct
import time
import tracemalloc

import pytest
import torch
from dump_helpers import rows, write_npy, write_shard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_dump_formats import write_ipc, write_parquet, write_pt, write_zarr

from aniso import InputError, open_dump

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

FILES = {
    "f.safetensors": lambda p: write_shard(p, {"a": rows(9, 4), "token_ids": torch.arange(9)}),
    "v.safetensors": lambda p: write_shard(
        p,
        {
            "hidden_states": torch.randn(5, 2, 4).to(torch.float8_e4m3fn),
            "hidden_states_scale": torch.rand(5, 2),
        },
    ),
    "f.npy": lambda p: write_npy(p, rows(9, 4)),
    "c.npy": lambda p: write_npy(p, rows(9, 4).numpy().T.copy().T.astype(">f4")),
    "f.parquet": lambda p: write_parquet(p, rows(9, 4)),
    "l.parquet": lambda p: write_parquet(p, rows(9, 4), "list"),
    "f.arrow": lambda p: write_ipc(p, rows(9, 4), "list", token_ids=torch.arange(9)),
    "f.feather": lambda p: write_ipc(p, rows(9, 4)),
    "f.pt": lambda p: write_pt(p, rows(9, 4)),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    return {name: write(folder / name).read_bytes() for name, write in FILES.items()}


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


def damaged(data, damage):
    """Bytes overwritten, cut out and doubled."""
    data = bytearray(data)
    for kind, share, value in damage:
        place = min(int(share * len(data)), len(data) - 1)
        if kind == "byte":
            data[place] = value
        elif kind == "number":
            data[place : place + 8] = struct.pack("<Q", (1 << (value % 64)) - value % 3)[
                : len(data) - place
            ]
        elif kind == "cut":
            del data[place : place + value + 1]
        elif kind == "end":
            del data[place:]
        else:
            data[place:place] = data[place : place + value + 1]
        data = data or bytearray(1)
    return bytes(data)


KINDS = st.sampled_from(["byte", "byte", "number", "cut", "end", "double"])
DAMAGE = st.lists(
    st.tuples(KINDS, st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
    min_size=1,
    max_size=4,
)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::SyntaxWarning")
@pytest.mark.parametrize("name", FILES)
def test_damaged_files(good, folder, name):
    @often
    @given(DAMAGE)
    def check(damage):
        data = damaged(good[name], damage)
        (folder / name).write_bytes(data)
        opens_or_is_refused(folder / name, len(data))

    check()


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


@often
@given(
    st.sampled_from(["zarr.json", "h.0/zarr.json", "h.0/c/0/0"]),
    DAMAGE,
)
@example("h.0/zarr.json", [("cut", 0.5, 255)])
def test_damaged_zarr(tmp_path_factory, name, damage):
    base = tmp_path_factory.getbasetemp() / "z"
    base.mkdir(exist_ok=True)
    path = write_zarr(base / "d.zarr", rows(9, 4))
    data = (path / name).read_bytes()
    (path / name).write_bytes(damaged(data, damage))
    opens_or_is_refused(path, 10_000)


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
