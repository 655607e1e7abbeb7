"""Ctrl-C, or a request to end, at a point where nothing is half-added."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Whether an interruption was asked for; a second one is not deferred."""

    def __init__(self, sentence: str) -> None:
        self.requested = False
        self._sentence = sentence

    def handle(self, signum: int, frame: Any) -> None:
        """The signal handler."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def raise_if_requested(self) -> None:
        """Raises KeyboardInterrupt where the caller's data are whole."""
        if self.requested:
            raise KeyboardInterrupt(self._sentence)


@contextmanager
def deferred_interrupt(sentence: str) -> Iterator[Interrupt]:
    """Turns SIGINT and SIGTERM into a flag while the block runs, in the main thread.

    Other threads never see a signal. torchrun and batch systems end a job by SIGTERM.

    Args:
        sentence: What the KeyboardInterrupt tells the user.
    """
    interrupt = Interrupt(sentence)
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    previous = {number: signal.signal(number, interrupt.handle) for number in _SIGNALS}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    interrupt.raise_if_requested()
