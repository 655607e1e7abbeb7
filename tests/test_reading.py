"""Blocks are the file's bytes, cold and warm, at any offset, in memory that is used again."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from dump_helpers import rows, write_shard

from aniso import InputError, open_dump
from aniso.dumps import Waiting, _file_reads, read_blocks
from aniso.dumps import dump as dump_module
from aniso.dumps._file_reads import PAGE, FileReads, Scratch, in_cache, read_pages


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(_file_reads, "PIECE_BYTES", 4 * PAGE)


@pytest.fixture
def scratch():
    with ThreadPoolExecutor(3) as threads:
        yield Scratch(threads)


def forget(path):
    """Takes the file out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


@pytest.mark.parametrize("state", ["cold", "warm", "half"])
def test_any_range_of_bytes(tmp_path, scratch, state):
    data = torch.randint(0, 256, (123_457,), dtype=torch.uint8)
    path = tmp_path / "file"
    path.write_bytes(data.numpy().tobytes())
    for begin, size in ((0, 123_457), (1, 1), (4095, 2), (4096, 40_000), (8, 123_449), (77, 0)):
        if state != "warm":
            forget(path)
        if state == "half":
            with path.open("rb") as file:
                file.seek(50_000)
                file.read(30_000)
        assert torch.equal(read_pages(path, begin, size, scratch), data[begin : begin + size])


def test_what_lies_in_the_cache_is_known(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as file:
        assert in_cache(file.fileno(), 4096, 100_000)
        assert in_cache(file.fileno(), 1 << 20, 4096)
        forget(path)
        assert not in_cache(file.fileno(), 4096, 100_000)
        file.read()
        assert in_cache(file.fileno(), 0, 1 << 21)


def test_without_reads_past_the_cache(tmp_path, scratch, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 100)
    opened = os.open

    def refuse_direct(path, flags, *rest, **options):
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return opened(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse_direct)
    forget(path)
    assert bytes(read_pages(path, 3, 20_000, scratch).numpy()) == path.read_bytes()[3:20_003]


@pytest.mark.parametrize("state", ["cold", "warm"])
def test_the_end_of_the_file_is_told(tmp_path, scratch, state):
    path = tmp_path / "file"
    path.write_bytes(bytes(20_000))
    if state == "cold":
        forget(path)
    with pytest.raises(InputError, match="file ends at byte 20000, inside its rows"):
        read_pages(path, 10, 20_000, scratch)
    with FileReads(path) as file, pytest.raises(InputError, match="ends at byte 20000"):
        file.fill(memoryview(bytearray(8)), 30_000, 8)


def test_blocks_reuse_three_buffers(tmp_path, monkeypatch):
    monkeypatch.setattr(dump_module, "_BLOCK_BYTES", 100 * 6 * 4)
    x = rows(1000)
    layer = open_dump(write_shard(tmp_path / "d.safetensors", {"a": x}))["a"]
    places, seen = set(), []
    for block in read_blocks(layer.stored_blocks(), Waiting()):
        places.add(block.rows.untyped_storage().data_ptr())
        seen.append(block.rows.clone())
    assert torch.equal(torch.cat(seen), x)
    assert len(seen) == 10
    # A longer block may have asked for more memory once.
    assert len(places) <= 6
    assert len({block.rows.data_ptr() for block in [*layer.blocks()]}) == 10


def test_waiting_is_the_time_without_a_block(tmp_path):
    layer = open_dump(write_shard(tmp_path / "d.safetensors", {"a": rows(1000)}))["a"]
    waiting = Waiting()
    list(read_blocks(layer.stored_blocks(), waiting))
    assert 0 < waiting.seconds < 60
