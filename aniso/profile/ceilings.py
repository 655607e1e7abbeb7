"""What this machine can do at best, measured: the limits that kernels are held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from aniso import _native

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@dataclass(frozen=True)
class MemoryPass:
    """One pass over memory at the rate that memory gives.

    Attributes:
        run: Does the pass once.
        nbytes: Bytes it moves; over the seconds of `run` they are the limit.
    """

    run: Callable[[], object]
    nbytes: int


def memory_pass(x: Tensor) -> MemoryPass:
    """The fastest pass over x: what a kernel that reads x once is measured against.

    On a CPU every byte is read on torch's number of threads; on a GPU x is copied, and bytes read
    and written both count.

    Args:
        x: A contiguous tensor, several times larger than the last-level cache.
    """
    if x.device.type == "cpu":
        threads = torch.get_num_threads()
        return MemoryPass(lambda: _native.read_stream_cpu(x, threads), x.nbytes)
    target = torch.empty_like(x)
    return MemoryPass(lambda: target.copy_(x), 2 * x.nbytes)
