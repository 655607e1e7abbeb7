"""The frame of every bench: ours and its peers, interleaved in one run, against a measured limit.

An op joins with one `Case` per shape in `benches/bench_<op>.py`:

    test_my_op = side_by_side(
        Case("my_op", "1e6x768 float32", make, ours, {"torch": peer}, error, nbytes=4 * 768e6)
    )
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
import torch

import aniso
from aniso.profile import memory_pass

if TYPE_CHECKING:
    from collections.abc import Callable

# Where a line of figures goes after every case: a run that is cut off leaves what it had.
RESULTS = os.environ.get("ANISO_BENCH_RESULTS")
DEVICE = os.environ.get("ANISO_BENCH_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Case:
    """One shape of one op.

    Attributes:
        op: The op's name.
        shape: What it runs on, for people.
        make: Makes the input on a device, random, never zeros.
        ours: The call that is measured.
        peers: What a user would call instead, by name.
        error: Relative error of our result against float64; measured before any speed counts.
        nbytes: Bytes the call must move at least; 0 when it is not bound by memory.
        tolerance: The largest error at which a speed may be reported.
        goals: Ratio to reach per peer, "limit" for the share of the measured limit, and
            "milliseconds" for the most that a GPU may take.
        rounds: How often every call takes its turn; fewer where a peer takes many seconds.
    """

    op: str
    shape: str
    make: Callable[[str], Any]
    ours: Callable[[Any], Any]
    peers: dict[str, Callable[[Any], Any]]
    error: Callable[[Any, Any], float]
    nbytes: float = 0.0
    tolerance: float = 1e-9
    goals: dict[str, float] = field(default_factory=dict)
    rounds: int = 7


def side_by_side(*cases: Case) -> Callable[..., None]:
    """The pytest-benchmark test that measures these cases."""

    @pytest.mark.parametrize("case", cases, ids=[f"{c.op} {c.shape}" for c in cases])
    def bench(case: Case, benchmark: Any) -> None:
        x = case.make(DEVICE)
        error = case.error(case.ours(x), x)
        assert error <= case.tolerance, f"error {error:.1e}: no speed of a wrong result"
        calls = {"ours": lambda: case.ours(x)}
        calls |= {name: (lambda peer=peer: peer(x)) for name, peer in case.peers.items()}
        limit = memory_pass(x) if case.nbytes else None
        if limit is not None:
            calls["limit"] = limit.run
        seconds = interleaved(calls, case.rounds)
        rate = None if limit is None else limit.nbytes / seconds.pop("limit")
        benchmark.pedantic(calls["ours"], rounds=1, warmup_rounds=0)
        benchmark.group = case.op
        benchmark.extra_info.update(_facts(case, seconds, error, rate, x))
        _print(case, benchmark.extra_info)
        if RESULTS is not None:
            with Path(RESULTS).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({"op": case.op, **benchmark.extra_info}) + "\n")

    return bench


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, the calls taking turns: a slow phase of the machine hits all."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(timed(call))
    return {name: median(values) for name, values in seconds.items()}


def timed(call: Callable[[], Any]) -> float:
    """Seconds of one call; on a GPU by device events."""
    if DEVICE == "cpu":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def _facts(
    case: Case, seconds: dict[str, float], error: float, limit: float | None, x: Any
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "shape": case.shape,
        "device": DEVICE,
        "backend": aniso.select_backend(case.op, x).name,
        "torch": torch.__version__,
        "error": error,
        "ratio": {name: t / seconds["ours"] for name, t in seconds.items() if name != "ours"},
        "goals": case.goals,
    }
    if DEVICE != "cpu":
        facts["milliseconds"] = {name: t * 1e3 for name, t in seconds.items()}
    if limit is not None:
        facts["limit_gb_per_s"] = limit / 1e9
        facts["gb_per_s"] = case.nbytes / seconds["ours"] / 1e9
        facts["share_of_limit"] = case.nbytes / seconds["ours"] / limit
    return facts


def _print(case: Case, facts: dict[str, Any]) -> None:
    parts = [f"{ratio:.1f}x {name}" for name, ratio in facts["ratio"].items()]
    if "share_of_limit" in facts:
        parts.append(
            f"{facts['gb_per_s']:.1f} GB/s, {facts['share_of_limit']:.0%} of the "
            f"{facts['limit_gb_per_s']:.1f} measured"
        )
    if "milliseconds" in facts:
        parts.append(f"{facts['milliseconds']['ours']:.2f} ms")
    parts.append(f"error {facts['error']:.1e}")
    sys.stderr.write(f"\n{case.op} {case.shape} on {facts['backend']}: {'; '.join(parts)}\n")
