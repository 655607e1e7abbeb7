"""Progress of long work: a live bar on a terminal, else one line (or JSON) per 30 seconds."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

from aniso._sizes import size_text

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

ProgressMode = bool | Literal["json"]
_SECONDS_PER_LINE = 30.0


@dataclass(frozen=True)
class Reading:
    """Where the reading of a dump stands.

    Attributes:
        shard: Which file, from 1.
        shards: How many.
        waited: Seconds in which there was nothing to work on, because the disk was slower.
    """

    shard: int
    shards: int
    waited: float


class Progress:
    """Counts rows and bytes and shows rows, GB/s and the time left, on stderr.

    Args:
        title: What is going on.
        total: Rows (or other units) in all.
        mode: True shows a bar on a terminal and lines elsewhere, "json" JSON lines, False nothing.
        unit: What is counted.
    """

    def __init__(
        self, title: str, total: int, mode: ProgressMode = True, *, unit: str = "rows"
    ) -> None:
        self._title, self._total, self._mode, self._unit = title, total, mode, unit
        self._stream: TextIO = sys.stderr
        self._done = self._resumed = self._bytes = 0
        self._reading: Reading | None = None
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        self._began = self._shown = time.monotonic()
        if self._mode is True and self._stream.isatty():
            self._start_bar()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif error is None and self._mode:
            self._write_line()

    def skip(self, count: int) -> None:
        """Units that an earlier run has done."""
        self._resumed += count
        self.advance(count)

    def advance(self, count: int, nbytes: int = 0, reading: Reading | None = None) -> None:
        """Units done since the last call, their size in memory, and where the reading stands."""
        self._reading = reading or self._reading
        self._done += count
        self._bytes += nbytes
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, rate=self._rate_text())
        elif self._mode and now - self._shown >= _SECONDS_PER_LINE:
            self._shown = now
            self._write_line()

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(self._unit),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(file=self._stream),
        )
        self._task = self._bar.add_task(self._title, total=self._total, rate="")
        self._bar.start()

    def _seconds(self) -> float:
        return max(1e-9, time.monotonic() - self._began)

    def _rate(self) -> float:
        return self._bytes / self._seconds() / 1e9

    def _rate_text(self) -> str:
        """GB/s where bytes are counted, else units per second."""
        if self._bytes:
            return f"{size_text(self._bytes / self._seconds())}/s{self._reading_text()}"
        return f"{(self._done - self._resumed) / self._seconds():,.0f} {self._unit}/s"

    def _reading_text(self) -> str:
        if self._reading is None:
            return ""
        facts = self._reading_facts(self._reading)
        return (
            f", {facts['rows_per_s']:,.0f} {self._unit}/s, {size_text(self._bytes)}, "
            f"file {facts['shard']} of {facts['shards']}, {facts['read_wait']:.0%} waiting for it"
        )

    def _reading_facts(self, reading: Reading) -> dict[str, float]:
        return {
            "shard": reading.shard,
            "shards": reading.shards,
            "tb": round(self._bytes / 1e12, 6),
            "rows_per_s": round((self._done - self._resumed) / self._seconds(), 1),
            "read_wait": round(reading.waited / self._seconds(), 3),
        }

    def _eta(self) -> float | None:
        done = self._done - self._resumed
        return (self._total - self._done) * self._seconds() / done if done else None

    def _write_line(self) -> None:
        eta = self._eta()
        if self._mode == "json":
            line = json.dumps(
                {
                    "task": self._title,
                    self._unit: self._done,
                    "total": self._total,
                    "resumed": self._resumed,
                    "gb_per_s": round(self._rate(), 3),
                    "eta_s": None if eta is None else round(eta, 1),
                    **(self._reading_facts(self._reading) if self._reading else {}),
                }
            )
        else:
            left = "" if eta is None else f", {eta:.0f} s left"
            # Results are still to be written, and may fail: no word of an end.
            left = f", {self._seconds():.0f} s" if self._done == self._total else left
            line = (
                f"{self._title}: {self._done:,} of {self._total:,} {self._unit}, "
                f"{self._rate_text()}{left}"
            )
        self._stream.write(line + "\n")
        self._stream.flush()
