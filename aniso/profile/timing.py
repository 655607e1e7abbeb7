"""Seconds of calls whose inputs lie in memory, not in a cache."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from aniso import _native

if TYPE_CHECKING:
    from collections.abc import Callable

# More than any GPU's second-level cache, and than the caches that one CPU core has to itself; of a
# last-level cache shared by many cores what is left over is little.
_EVICTED_BYTES = 1 << 28
_FEWEST, _MOST = 3, 15
# On a GPU calls below this many seconds are replayed from a CUDA graph.
_SHORT = 1e-4


def seconds_of(call: Callable[[], Any], device: str) -> float:
    """Seconds of one call: of the wall clock on a CPU, of CUDA events on a GPU."""
    if torch.device(device).type == "cpu":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def replayable(call: Callable[[], Any], device: str) -> Callable[[], Any]:
    """The call; on a GPU, where it is short, the replay of its CUDA graph.

    Launching kernels from Python may take longer than they run. A call that cannot be captured,
    because it waits for the device, stays as it is.
    """
    if torch.device(device).type == "cpu" or _warm_seconds(call, device) >= _SHORT:
        return call
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.device(device), torch.cuda.graph(graph):
            call()
    except RuntimeError:
        return call
    return graph.replay


def _warm_seconds(call: Callable[[], Any], device: str) -> float:
    call()
    return seconds_of(call, device)


class ColdCache:
    """Puts other bytes where the inputs of a call were.

    Attributes:
        stream: The other bytes.
    """

    def __init__(self, device: str) -> None:
        self.stream = torch.ones(_EVICTED_BYTES // 4, device=device)

    def evict(self) -> None:
        """Reads a large buffer on a CPU; overwrites it on a GPU, which reads cannot replace."""
        if self.stream.device.type == "cpu":
            _native.read_stream_cpu(self.stream, torch.get_num_threads())
        else:
            self.stream.fill_(1.0)


def interleaved(
    calls: dict[str, Callable[[], Any]], cold: ColdCache, device: str, budget: float
) -> dict[str, list[float]]:
    """Seconds of every round of each call, the calls taking turns: a slow phase hits all.

    Each call runs once unmeasured; the rounds are as many as fit `budget` seconds, 3 to 15. Short
    ones on a GPU are CUDA graphs (`replayable`).
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    calls = {name: replayable(call, device) for name, call in calls.items()}
    for call in calls.values():
        call()
    began, rounds = time.perf_counter(), 0
    while rounds < _FEWEST or (rounds < _MOST and time.perf_counter() - began < budget):
        for name, call in calls.items():
            cold.evict()
            seconds[name].append(seconds_of(call, device))
        rounds += 1
    return seconds
