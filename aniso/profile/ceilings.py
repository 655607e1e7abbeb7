"""What this machine can do at best, measured: the limits that kernels are held against."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

import torch

from aniso import _native

if TYPE_CHECKING:
    from torch import Tensor


def read_bandwidth(buffer: Tensor, *, threads: int | None = None, repeats: int = 7) -> float:
    """Bytes per second at which the CPU reads `buffer` once, every byte used.

    Args:
        buffer: A contiguous tensor, several times larger than the last-level cache.
        threads: Threads that read. Default: torch's number.
        repeats: Passes; the median counts.
    """
    count = threads or torch.get_num_threads()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        _native.read_stream_cpu(buffer, count)
        seconds.append(time.perf_counter() - began)
    return buffer.nbytes / median(seconds)


def copy_bandwidth(device: str, *, nbytes: int = 1 << 32, repeats: int = 7) -> float:
    """Bytes per second of a copy on a GPU, read and written bytes both counted.

    Args:
        device: A CUDA device.
        nbytes: Size of the buffer; several times the L2 cache.
        repeats: Copies; the median counts.
    """
    source = torch.empty(nbytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    seconds = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    return float(2 * nbytes / median(seconds))
