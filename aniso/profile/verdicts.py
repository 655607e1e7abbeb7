"""Two profiles of one machine: what became faster, what slower, and what noise hides."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aniso.errors import InputError
from aniso.profile.report import SCHEMA

if TYPE_CHECKING:
    from pathlib import Path

    from aniso.profile.measurement import Measurement, Timing
    from aniso.profile.report import ProfileReport

THRESHOLD = 0.1
# A spread of rounds wider than this, p20 to p80 over the median, leaves changes below _PLAIN open.
_WIDEST = 0.3
_PLAIN = 2.0

Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Change:
    """A kernel now and before.

    Attributes:
        key: Its op, backend, dtype and shape.
        ratio: Seconds before over seconds now; above 1 it is faster.
        verdict: "FAST", "SLOW", "SAME" (within the threshold), or "NOISY": the medians differ, but
            the rounds overlap or scatter too widely to tell, or torch changed as much beside them.
    """

    key: Key
    ratio: float
    verdict: str


def changes(now: ProfileReport, before: dict[str, Any]) -> tuple[Change, ...]:
    """The change of every kernel that both runs measured, and got right.

    Args:
        now: This run.
        before: What `ProfileReport.results()` gave then.

    Raises:
        InputError: `before` comes from another device.
    """
    then, machine = before["machine"], now.machine
    for fact in ("name", "threads"):
        if then[fact] != machine[fact]:
            raise InputError(
                f"the old profile was measured with {fact} {then[fact]!r}, this one with "
                f"{machine[fact]!r}; compare runs of one machine"
            )
    old = {_key(entry): entry for entry in before["kernels"] if entry["seconds"] is not None}
    return tuple(
        _change(row, row.timing, old[row.key])
        for row in now.rows
        if row.timing is not None and row.key in old
    )


def read_profile(path: Path) -> dict[str, Any]:
    """The results that `aniso profile --json` wrote.

    Raises:
        InputError: it cannot be read, or is no profile.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise InputError(f"{path} has schema {found['schema']}, not {SCHEMA}; measure it anew")
        _ = [(_key(entry), entry["seconds"]) for entry in found["kernels"]]
        _ = found["machine"]["name"], found["machine"]["threads"]
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); pass a profile") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no profile; pass what aniso profile --json wrote") from error
    profile: dict[str, Any] = found
    return profile


def _change(row: Measurement, now: Timing, then: dict[str, Any]) -> Change:
    ratio = then["seconds"] / now.median
    spans = (now.p20, now.p80), (then["seconds_p20"], then["seconds_p80"])
    verdict = _verdict(ratio, spans, (now.median, then["seconds"]))
    if verdict in ("FAST", "SLOW") and not _torch_agrees(row, then, ratio > 1):
        verdict = "NOISY"
    return Change(row.key, ratio, verdict)


def _torch_agrees(row: Measurement, then: dict[str, Any], faster: bool) -> bool:
    """Whether the ratio to torch changed the same way: else the machine did, not the kernel."""
    if row.speedup is None or then["speedup"] is None:
        return True
    ratio = row.speedup / float(then["speedup"])
    return ratio > 1 + THRESHOLD if faster else ratio < 1 / (1 + THRESHOLD)


def _verdict(
    ratio: float, spans: tuple[tuple[float, float], ...], medians: tuple[float, float]
) -> str:
    if 1 / (1 + THRESHOLD) <= ratio <= 1 + THRESHOLD:
        return "SAME"
    (low, high), (old_low, old_high) = spans
    overlap = low <= old_high and old_low <= high
    scattered = any(b - a > _WIDEST * middle for (a, b), middle in zip(spans, medians, strict=True))
    if overlap or (scattered and 1 / _PLAIN < ratio < _PLAIN):
        return "NOISY"
    return "FAST" if ratio > 1 else "SLOW"


def _key(entry: dict[str, Any]) -> Key:
    return entry["op"], entry["backend"], entry["dtype"], entry["shape"]
