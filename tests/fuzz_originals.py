"""Small valid dumps of every format and flavour, for fuzzers to damage."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr
from dump_helpers import rows, write_npy, write_shard
from test_dump_formats import table, write_ipc, write_parquet, write_pt, write_zarr

from aniso import DumpWriter


def originals() -> dict[str, dict[str, bytes]]:
    """Dumps by name, each its files by name; what stands before "-" in a name is the reader."""
    found = {}
    with TemporaryDirectory() as folder:
        for name, write in _DUMPS.items():
            path = Path(folder) / name
            path.mkdir()
            write(path)
            files = sorted(p for p in path.rglob("*") if p.is_file())
            found[name] = {str(p.relative_to(path)): p.read_bytes() for p in files}
    return found


def _indexed(folder: Path) -> None:
    write_shard(folder / "a.safetensors", {"h": rows(9, 4)}, ["h", "g"])
    write_shard(folder / "b.safetensors", {"g": rows(5, 4)})
    places = {"weight_map": {"h": "a.safetensors", "g": "b.safetensors"}}
    (folder / "m.safetensors.index.json").write_text(json.dumps(places))


def _written(folder: Path) -> None:
    with DumpWriter(folder, ["h", "g"], shard_bytes=96) as writer:
        for name in ("h", "g"):
            writer.append(name, rows(9, 4))


def _dataset(folder: Path) -> None:
    write_ipc(folder / "data-0.arrow", rows(9, 4), "list")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}}))


def _raw(folder: Path) -> None:
    (folder / "r.raw").write_bytes(rows(9, 4).bfloat16().view(torch.uint8).numpy().tobytes())
    (folder / "r.raw.json").write_text('{"dtype": "bfloat16", "dim": 4}')


def _bf16_npy(folder: Path) -> None:
    write_npy(folder / "b.npy", rows(9, 4).bfloat16().view(torch.uint16))
    (folder / "b.npy.json").write_text('{"dtype": "bfloat16"}')


def _fp8(folder: Path) -> None:
    values = torch.randn(5, 2, 4).to(torch.float8_e4m3fn)
    stored = {"hidden_states": values, "hidden_states_scale": torch.rand(5, 2)}
    write_shard(folder / "v.safetensors", stored)


def _packed_parquet(folder: Path, codec: str) -> None:
    pq.write_table(table(rows(40, 4), "list"), folder / "p.parquet", compression=codec)


def _packed_ipc(folder: Path, codec: str) -> None:
    whole = table(rows(40, 4), "list")
    options = pa.ipc.IpcWriteOptions(compression=codec)
    path = str(folder / "c.feather")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, whole.schema, options=options) as out:
        out.write_table(whole)


def _sharded_zarr(folder: Path) -> None:
    zarr.create_array(str(folder), data=rows(8, 4).numpy(), chunks=(2, 4), shards=(4, 4))


_DUMPS = {
    "safetensors-rows": lambda p: write_shard(
        p / "f.safetensors", {"a": rows(9, 4), "token_ids": torch.arange(9)}, ["a"]
    ),
    "safetensors-fp8": _fp8,
    "safetensors-long": lambda p: write_shard(p / "l.safetensors", {"a": rows(2000, 16)}),
    "index-two": _indexed,
    "index-rows": _written,
    "npy-rows": lambda p: write_npy(p / "f.npy", rows(9, 4)),
    "npy-columns": lambda p: write_npy(p / "c.npy", rows(9, 4).numpy().T.copy().T.astype(">f4")),
    "npy-bf16": _bf16_npy,
    "raw-bf16": _raw,
    "parquet-fixed": lambda p: write_parquet(p / "f.parquet", rows(9, 4)),
    "parquet-list": lambda p: write_parquet(p / "l.parquet", rows(9, 4), "list"),
    "parquet-zstd": lambda p: _packed_parquet(p, "zstd"),
    "parquet-gzip": lambda p: _packed_parquet(p, "gzip"),
    "arrow-stream": lambda p: write_ipc(
        p / "f.arrow", rows(9, 4), "list", token_ids=torch.arange(9)
    ),
    "arrow-file": lambda p: write_ipc(p / "f.feather", rows(9, 4)),
    "arrow-lz4": lambda p: _packed_ipc(p, "lz4"),
    "arrow-zstd": lambda p: _packed_ipc(p, "zstd"),
    "dataset-hf": _dataset,
    "pt-dict": lambda p: write_pt(p / "f.pt", rows(9, 4)),
    "pt-bf16": lambda p: torch.save(rows(9, 4).bfloat16(), p / "t.pt"),
    "zarr-3": lambda p: write_zarr(p, rows(9, 4)),
    "zarr-2": lambda p: write_zarr(p, rows(9, 4), version=2),
    "zarr-sharded": _sharded_zarr,
}
