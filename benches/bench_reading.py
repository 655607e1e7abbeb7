"""Reading a dump from the disk against `dd iflag=direct` on the same file, cold and warm.

python benches/bench_reading.py FILE [--gram]: FILE is a dump of one layer, a few GB large. Cold
means that its pages were dropped from the page cache (POSIX_FADV_DONTNEED on the file alone).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from pathlib import Path

import torch

from aniso import LayerState, open_dump
from aniso.dumps import Waiting, read_blocks


def drop(path: Path) -> None:
    """Takes the file's pages out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def dd(path: Path) -> float:
    """Seconds that dd takes past the page cache."""
    began = time.perf_counter()
    command = ["dd", f"if={path}", "of=/dev/null", "bs=32M", "iflag=direct"]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def ours(path: Path, *, kernels: bool, gram: bool) -> tuple[float, float]:
    """Seconds to read all rows, with or without folding them, and of them waiting for the disk."""
    began, waiting = time.perf_counter(), Waiting()
    dump = open_dump(path)
    layer = dump[dump.layers[0]]
    state = LayerState(layer.dim, gram=gram)
    for block in read_blocks(layer.stored_blocks(), waiting):
        if kernels:
            state.update(block.rows)
    return time.perf_counter() - began, waiting.seconds


def main() -> None:
    """Prints a line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--gram", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    size = given.file.stat().st_size
    print(f"{size / 1e9:.2f} GB, {torch.get_num_threads()} threads")
    for _ in range(given.repeat):
        drop(given.file)
        direct = dd(given.file)
        for cold in (True, False):
            for kernels in (False, True):
                if cold:
                    drop(given.file)
                seconds, waited = ours(given.file, kernels=kernels, gram=given.gram)
                print(
                    f"{'cold' if cold else 'warm'}, {'folded' if kernels else 'read  '}: "
                    f"{size / seconds / 1e9:.2f} GB/s, {direct / seconds:.0%} of dd "
                    f"({size / direct / 1e9:.2f} GB/s), waiting {waited / seconds:.0%}"
                )


if __name__ == "__main__":
    main()
