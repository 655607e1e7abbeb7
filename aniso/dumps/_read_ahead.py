"""Reading ahead: the next block comes from the disk while the caller works on this one."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from aniso.dumps._file_reads import Scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_T = TypeVar("_T")
# Enough reads under way for a disk's full rate; more bring nothing (measured, two cores).
_THREADS = 4


@dataclass
class Waiting:
    """Seconds in which the caller had nothing to work on, because the disk was slower."""

    seconds: float = 0.0


def read_ahead(
    tasks: Sequence[Callable[[Scratch | None], _T]], waiting: Waiting, *, reuse: bool
) -> Iterator[_T]:
    """The results of the tasks in order, each begun when the one before is handed out.

    Args:
        tasks: Each reads one block, in the scratch it is given.
        waiting: Grows by the time spent waiting for the disk.
        reuse: Read into two buffers in turn: a result is overwritten when the next is asked for.
    """
    with (
        ThreadPoolExecutor(1, thread_name_prefix="aniso-block") as ahead,
        ThreadPoolExecutor(_THREADS, thread_name_prefix="aniso-read") as threads,
    ):
        buffers = (Scratch(threads), Scratch(threads)) if reuse else (None, None)
        upcoming = ahead.submit(tasks[0], buffers[0]) if tasks else None
        for i in range(len(tasks)):
            if upcoming is None:
                return
            began = time.perf_counter()
            current = upcoming.result()
            waiting.seconds += time.perf_counter() - began
            more = i + 1 < len(tasks)
            upcoming = ahead.submit(tasks[i + 1], buffers[(i + 1) % 2]) if more else None
            yield current
