import contextlib
import json
import os
import pty
import re

import pytest
from dump_helpers import strict_json

from aniso import progress
from aniso.progress import Progress, Reading


class Clock:
    """Time that passes when it is told to."""

    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()


def test_one_line_per_thirty_seconds_and_one_at_the_end(clock, capsys):
    with Progress("analyze", 1000) as shown:
        for _ in range(10):
            clock.now += 10
            shown.advance(100, 10**9)
    assert lines(capsys) == [
        "analyze: 300 of 1,000 rows, 100 MB/s, 70 s left",
        "analyze: 600 of 1,000 rows, 100 MB/s, 40 s left",
        "analyze: 900 of 1,000 rows, 100 MB/s, 10 s left",
        "analyze: 1,000 of 1,000 rows, 100 MB/s, 100 s",
    ]


def test_json_lines_carry_the_same_numbers(clock, capsys):
    with Progress("analyze", 1000, "json") as shown:
        clock.now += 40
        shown.advance(400, 2 * 10**9)
    first, last = map(strict_json, lines(capsys))
    assert first == {
        "task": "analyze",
        "rows": 400,
        "total": 1000,
        "resumed": 0,
        "gb_per_s": 0.05,
        "eta_s": 60.0,
    }
    assert last == first


def test_resumed_rows_count_as_done_but_not_into_rate_and_time_left(clock, capsys):
    with Progress("analyze", 1000, "json") as shown:
        shown.skip(800)
        clock.now += 30
        shown.advance(100, 3 * 10**9)
    line = json.loads(lines(capsys)[0])
    assert (line["rows"], line["resumed"]) == (900, 800)
    assert line["gb_per_s"] == 0.1
    assert line["eta_s"] == 30.0


def test_nothing_new_done_has_no_time_left(clock, capsys):
    with Progress("analyze", 10, "json") as shown:
        shown.skip(10)
    with Progress("analyze", 10) as shown:
        shown.skip(10)
    first, second = lines(capsys)
    assert strict_json(first)["eta_s"] is None
    assert "left" not in second


def test_without_bytes_the_rate_is_in_units(clock, capsys):
    with Progress("capture", 64, unit="texts") as shown:
        clock.now += 2
        shown.advance(32)
    assert lines(capsys) == ["capture: 32 of 64 texts, 16 texts/s, 2 s left"]


def test_silent_when_off_and_when_the_work_failed(clock, capsys):
    with Progress("analyze", 10, False) as shown:
        clock.now += 100
        shown.advance(5, 5)
    with pytest.raises(ZeroDivisionError), Progress("analyze", 10) as shown:
        raise ZeroDivisionError
    assert lines(capsys) == []


def read_all(controller):
    """All that was written to a terminal whose other end is closed: Linux ends it with EIO."""
    text = b""
    with contextlib.suppress(OSError):
        while piece := os.read(controller, 1 << 16):
            text += piece
    os.close(controller)
    return text.decode()


def test_a_terminal_gets_a_bar(monkeypatch):
    controller, terminal = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        with Progress("analyze", 1000) as shown:
            shown.advance(1000, 10**9)
    text = read_all(controller)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "1000/1000 rows" in plain
    assert "GB/s" in plain


def test_reading_shows_files_size_rows_and_waiting(clock, capsys):
    for mode in (True, "json"):
        with Progress("analyze", 1000, mode) as shown:
            clock.now += 10
            shown.advance(400, 2 * 10**10, Reading(3, 12, 2.5))
    text, line = lines(capsys)
    assert text == (
        "analyze: 400 of 1,000 rows, 2 GB/s, 40 rows/s, 20 GB, file 3 of 12, "
        "25% waiting for it, 15 s left"
    )
    found = strict_json(line)
    assert (found["shard"], found["shards"], found["tb"]) == (3, 12, 0.02)
    assert (found["rows_per_s"], found["read_wait"], found["eta_s"]) == (40.0, 0.25, 15.0)
