"""Reading ahead: the next blocks come from the disk while the caller works on this one."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from aniso.dumps._file_reads import Scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

_T = TypeVar("_T")
# Enough reads under way for a disk's full rate; more bring nothing (measured, two cores).
_THREADS = 4
# With one alone the disk rests between its end and the caller's asking for the next.
_AHEAD = 2


@dataclass
class Waiting:
    """Seconds in which the caller had nothing to work on, because the disk was slower."""

    seconds: float = 0.0


def read_ahead(
    tasks: Sequence[Callable[[Scratch | None], _T]], waiting: Waiting, *, reuse: bool
) -> Iterator[_T]:
    """The results of the tasks in order; the next two are begun while one is worked on.

    Args:
        tasks: Each reads one block, in the scratch it is given.
        waiting: Grows by the time spent waiting for the disk.
        reuse: Read into three buffers in turn: a result is overwritten when the next is asked for.
    """
    with (
        ThreadPoolExecutor(1, thread_name_prefix="aniso-block") as ahead,
        ThreadPoolExecutor(_THREADS, thread_name_prefix="aniso-read") as threads,
    ):
        buffers = [Scratch(threads) if reuse else None for _ in range(_AHEAD + 1)]
        upcoming: deque[Future[_T]] = deque()
        try:
            for i in range(len(tasks) + _AHEAD):
                if i < len(tasks):
                    upcoming.append(ahead.submit(tasks[i], buffers[i % len(buffers)]))
                if i >= _AHEAD:
                    began = time.perf_counter()
                    current = upcoming.popleft().result()
                    waiting.seconds += time.perf_counter() - began
                    yield current
        finally:
            # Nobody takes what is not begun yet.
            ahead.shutdown(wait=False, cancel_futures=True)
