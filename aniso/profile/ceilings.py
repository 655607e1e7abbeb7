"""What this machine can do at best, measured: the limits that kernels are held against."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from aniso import _native
from aniso.profile.timing import ColdCache, seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

# As large as the inputs of kernels that are bound by memory: of an eviction from a last-level cache
# that many cores share something is always left, for them as for this.
_PASS_BYTES = 1 << 26
# Large enough for full speed, small enough for a round to fit between two turns of other work.
_MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
_ROUNDS = 3
# A limit is seen only when nothing else runs: this many seconds wait for such a moment.
_PATIENCE = 0.25


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
    return copy_pass(x)


def copy_pass(x: Tensor) -> MemoryPass:
    """A copy of x; bytes read and written both count."""
    target = torch.empty_like(x)
    return MemoryPass(lambda: target.copy_(x), 2 * x.nbytes)


@dataclass(frozen=True)
class Ceilings:
    """The limits of one device, all from one run.

    Attributes:
        read: Bytes per second of the fastest pass that kernels which read once can hope for: of
            reading on a CPU, of copying on a GPU.
        copy: Bytes per second of a copy, read and written both counted.
        matmul: dtype to floating-point operations per second of a large matrix product by torch.
    """

    read: float
    copy: float
    matmul: dict[str, float]

    def floor(self, nbytes: float, flops: float, dtype: str) -> tuple[float, str]:
        """The seconds that work takes at the limits, and which of them, "memory" or "compute"."""
        seconds = {"memory": nbytes / self.read, "compute": flops / self._peak(dtype)}
        which = max(seconds, key=seconds.__getitem__)
        return seconds[which], which

    def ridge(self, dtype: str) -> float:
        """Operations per byte above which the matrix unit, not memory, is the limit."""
        return self._peak(dtype) / self.read

    def _peak(self, dtype: str) -> float:
        return self.matmul.get(dtype, max(self.matmul.values()))


def measure_ceilings(device: str, dtypes: Iterable[torch.dtype]) -> Ceilings:
    """The limits of `device` as measured now: the best of the rounds, as limits are.

    Memory is read by the compiled pass and by torch's sum, with cold caches; the faster one counts.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        dtypes: Of the matrix products.

    Takes two to three seconds; memory 0.5 GiB.
    """
    x, cold = torch.ones(_PASS_BYTES // 4, device=device), ColdCache(device)
    copy = _rate(copy_pass(x), device, cold.evict)
    read = max(_rate(one, device, cold.evict) for one in _read_passes(x))
    return Ceilings(read, copy, matmul_rates(device, dtypes))


def matmul_rates(
    device: str, dtypes: Iterable[torch.dtype], patience: float = _PATIENCE
) -> dict[str, float]:
    """Dtype to operations per second of the fastest large product now, in `patience` seconds."""
    names = {str(dtype).removeprefix("torch."): dtype for dtype in dtypes}
    return {name: _matmul_rate(dtype, device, patience) for name, dtype in names.items()}


def read_rates(device: str, cold: ColdCache) -> list[float]:
    """Bytes per second of the fastest read now, by round, ascending: whether the pace is kept."""
    x = torch.ones(_PASS_BYTES // 4, device=device)
    passes = _read_passes(x)
    rounds = [[_rate_once(one, device, cold.evict) for one in passes] for _ in range(_ROUNDS)]
    return sorted(max(rates) for rates in rounds)


def _read_passes(x: Tensor) -> tuple[MemoryPass, MemoryPass]:
    return memory_pass(x), MemoryPass(lambda: x.sum(), x.nbytes)


def _rate_once(one: MemoryPass, device: str, before: Callable[[], object]) -> float:
    before()
    return one.nbytes / seconds_of(one.run, device)


def _rate(
    one: MemoryPass,
    device: str,
    before: Callable[[], object] = lambda: None,
    patience: float = _PATIENCE,
) -> float:
    one.run()
    rates: list[float] = []
    began = time.perf_counter()
    while len(rates) < _ROUNDS or time.perf_counter() < began + patience:
        rates.append(_rate_once(one, device, before))
    return max(rates)


def _matmul_rate(dtype: torch.dtype, device: str, patience: float) -> float:
    side = _MATRIX_SIDE[torch.device(device).type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    product_of_two = MemoryPass(lambda: torch.matmul(a, b, out=product), 2 * side**3)
    return _rate(product_of_two, device, patience=patience)
