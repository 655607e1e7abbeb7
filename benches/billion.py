"""A billion rows through all moments and both Grams, against answers known in closed form.

    python benches/billion.py [--rows 1e9] [--norm-ratio 1] [--out benches/results]

Prints a line per decade as it ends and writes billion-<rows>-<ratio>.json. What is done is saved
every two minutes and on Ctrl-C; the same command goes on from there.

Row i is x = (a, ±b₁, …, ±b₇₆₇) sᵢ with independent fair signs, in bfloat16. The scales sᵢ take
4,096 values in turn from 1 to the norm ratio, which no two neighbours share. With 1, the default,
all rows have one norm, as they have after a normalisation without gain, and `gram` needs one
product for both Gram matrices; with any other it needs three. a and b of a scale are rounded to
bfloat16, and what follows counts the rounded numbers, xᵢₖ² and x̂ᵢₖ², which no sign changes. Off
the diagonal E xxᵀ is 0, so that with means over the rows (i) and pairs of rows (i ≠ j)

    mean cosine = mean x̂ᵢ₁x̂ⱼ₁     mean square of cosines = Σₖ mean x̂ᵢₖ²x̂ⱼₖ²
    σₖ²/N = mean xᵢₖ²

up to the chance of the signs. Its size is known as well: with q the variance of the cosine, the
mean cosine of N rows is off by √(2q)/N, the variance by 2q/N (both are degenerate U-statistics),
and no eigenvalue of Σxxᵀ/N by more than the norm of a matrix of independent entries of the size of
bₖbₗ sᵢ²/√N, 2 √(mean maxₖ xᵢₖ² ‖xᵢ‖²)/√N. The errors stated are six times the first two and 1.5
times the last, besides the rounding of float64, what `row_moments` states for the sum of directions
of bfloat16 rows, 8e-6, 1e-7 for the float32 sums of `gram`, and where norms differ 1e-5 of the
variance for the second parts of its factors: rows that come again with other signs round alike, so
that these do not average out.

Signs come from one block of random bits, with every column flipped by fair coins for each block:
sums and second moments of different blocks are as independent as those of fresh rows. A block is
long enough for `gram` to add a d × d result per block, and still lies in a server's last cache.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aniso import LayerState, _native
from aniso._files import write_atomic
from aniso.progress import Progress
from aniso.state import Block

if TYPE_CHECKING:
    from torch import Tensor

DIM = 768
BLOCK_ROWS = 16_384
SCALES = 4096
SAVE_SECONDS = 120.0
_SIGN = -(1 << 15)
_SOURCE = "signs"
_ROUNDING = 1e-9
_DIRECTIONS = 8e-6
_PRODUCTS = 1e-7
_SECOND_PARTS = 1e-5


@dataclass(frozen=True)
class Answer:
    """One number found, its closed form, and how far apart they may be."""

    name: str
    found: float
    expected: float
    error: float

    @property
    def inside(self) -> bool:
        """Whether the number is as near as stated."""
        return abs(self.found - self.expected) <= self.error


@dataclass(frozen=True)
class Decade:
    """Time of the rows up to a power of ten (or the last row), since the decade before."""

    rows: int
    seconds: float
    rows_since: int

    @property
    def nanoseconds_per_row(self) -> float:
        """Time per row of this decade."""
        return self.seconds / self.rows_since * 1e9

    @property
    def line(self) -> str:
        """As the table has it."""
        return f"to {self.rows:>14,} rows: {self.nanoseconds_per_row:8.1f} ns per row"


def magnitudes() -> Tensor:
    """a, b₁, …, b₇₆₇ in bfloat16: b falls by 2⁻⁵ over the columns, a² is about Σb²."""
    b = torch.exp2(-5 * torch.arange(1, DIM) / DIM).bfloat16()
    a = b.double().square().sum().sqrt().bfloat16()
    return torch.cat([a[None], b])


def scaled_magnitudes(norm_ratio: float) -> Tensor:
    """The magnitudes of rows 0, …, SCALES - 1, [SCALES, DIM] bfloat16; later rows repeat them."""
    # An odd factor: every scale comes once, and neighbours are far apart.
    scales = norm_ratio ** (torch.arange(SCALES).mul(1597).remainder(SCALES) / SCALES)
    return (scales[:, None] * magnitudes().float()).bfloat16()


class Rows:
    """The rows of a seed; block i is always the same."""

    def __init__(self, norm_ratio: float, seed: int = 0) -> None:
        self._seed, self._coins = seed, torch.Generator()
        generator = torch.Generator().manual_seed(seed)
        bits = torch.randint(-(1 << 15), 1 << 15, (BLOCK_ROWS, DIM), generator=generator)
        values = scaled_magnitudes(norm_ratio).repeat(BLOCK_ROWS // SCALES, 1).view(torch.int16)
        self._signed = (bits.short() & _SIGN) ^ values
        self._signed[:, 0] = values[:, 0]
        self._flips = torch.zeros(DIM, dtype=torch.int16)

    def block(self, i: int, count: int = BLOCK_ROWS) -> Tensor:
        """The first rows of block i, in memory that the next call overwrites."""
        self._coins.manual_seed((self._seed << 32) + i)
        flips = torch.randint(0, 2, (DIM,), generator=self._coins).short() * _SIGN
        flips[0] = 0
        # In place, so that a block stays in the cache: what the last call flipped is flipped back.
        self._signed ^= flips ^ self._flips
        self._flips = flips
        return self._signed[:count].view(torch.bfloat16)


@dataclass
class Run:
    """What is done of a number of rows.

    Attributes:
        state: Of all rows so far.
        decades: Those that have ended.
        seconds: Spent in the decade that has not.
    """

    state: LayerState = field(default_factory=lambda: LayerState(DIM))
    decades: list[Decade] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rows(self) -> int:
        """Rows so far."""
        return self.state.sources.rows_done(_SOURCE)

    def save(self, path: Path) -> None:
        """Writes the state to `path` and the times beside it."""
        self.state.save(path)
        times = {"decades": [asdict(d) for d in self.decades], "seconds": self.seconds}
        write_atomic(path.with_suffix(".json"), json.dumps(times).encode())

    @classmethod
    def load(cls, path: Path) -> Run:
        """What an earlier run saved, or nothing done."""
        if not path.exists():
            return cls()
        times = json.loads(path.with_suffix(".json").read_bytes())
        decades = [Decade(**decade) for decade in times["decades"]]
        return cls(LayerState.load(path), decades, times["seconds"])


def stream(rows: int, norm_ratio: float = 1.0, saved: Path | None = None) -> Run:
    """Folds the rows in, from where a saved run stopped; tells every decade from 1e6 on."""
    run = Run.load(saved) if saved else Run()
    source, shown = Rows(norm_ratio), Progress("billion", rows, saved is not None)
    with shown:
        shown.skip(run.rows)
        try:
            _fold(run, rows, source, shown, saved)
        except KeyboardInterrupt:
            if saved:
                run.save(saved)
            raise
    return run


def _fold(run: Run, rows: int, source: Rows, shown: Progress, saved: Path | None) -> None:
    done, began, kept = run.rows, time.perf_counter() - run.seconds, time.monotonic()
    since = run.decades[-1].rows if run.decades else 0
    while done < rows:
        # Blocks end where a decade does: the same rows whatever was asked for.
        decade = 10 ** max(6, math.floor(math.log10(done + 1)) + 1)
        first, offset = divmod(done, BLOCK_ROWS)
        count = min(BLOCK_ROWS - offset, min(rows, decade) - done)
        block = source.block(first)[offset : offset + count]
        run.state.update(block, block=Block(_SOURCE, done, done + count))
        done += count
        now = time.perf_counter()
        run.seconds = now - began
        if done in (rows, decade):
            run.decades.append(Decade(done, run.seconds, done - since))
            since, began, run.seconds = done, now, 0.0
            if saved:
                print(run.decades[-1].line, flush=True)
        shown.advance(count, block.nbytes)
        if saved and (time.monotonic() - kept > SAVE_SECONDS or done == rows):
            run.save(saved)
            kept = time.monotonic()


@dataclass(frozen=True)
class Expected:
    """What the metrics of rows are but for the chance of their signs, and what that depends on."""

    mean_norm: float
    mean_cosine: float
    var_cosine: float
    second_moments: Tensor  # [DIM] mean xₖ²
    spread: float  # √(mean maxₖ xₖ² ‖x‖²)


def expected(rows: int, norm_ratio: float) -> Expected:
    """The closed forms of the first rows."""
    squares = scaled_magnitudes(norm_ratio).double().square()
    whole, rest = divmod(rows, SCALES)
    share = (whole + (torch.arange(SCALES) < rest).double()) / rows
    norms = squares.sum(1).sqrt()
    units = squares / norms[:, None].square()
    # Of pairs of different rows: the square of the mean, less the share of pairs (i, i).
    first = units[:, 0].sqrt()
    mean = (float(share @ first) ** 2 * rows - float(share @ units[:, 0])) / (rows - 1)
    square = (share @ units).square().sum() * rows - (share @ units.square()).sum()
    return Expected(
        mean_norm=float(share @ norms),
        mean_cosine=mean,
        var_cosine=float(square) / (rows - 1) - mean**2,
        second_moments=share @ squares,
        spread=float(share @ (squares.amax(1) * squares.sum(1))) ** 0.5,
    )


def answers(state: LayerState, norm_ratio: float = 1.0) -> list[Answer]:
    """What was found beside the closed forms."""
    rows, found = state.moments.rows, state.compute()
    known = expected(rows, norm_ratio)
    mean_square, q = float(known.second_moments.sum()), known.var_cosine
    largest = float(known.second_moments.max())
    chance = 1.5 * 2 * known.spread / math.sqrt(rows)
    chance_of_mean = 6 * math.sqrt(2 * q) / rows + 2 * _DIRECTIONS * known.mean_cosine
    sigma = torch.from_numpy(found.singular_values.copy()).square() / rows
    worst = float((sigma - known.second_moments.sort(descending=True).values).abs().max())
    rank = mean_square / largest
    products = _PRODUCTS if norm_ratio == 1 else _SECOND_PARTS
    return [
        Answer("rows", rows, rows, 0),
        _beside(found.metrics, "mean_norm", known.mean_norm, 0.0),
        _beside(found.metrics, "rms_norm", math.sqrt(mean_square), 0.0),
        _beside(found.metrics, "mean_cosine", known.mean_cosine, chance_of_mean),
        _beside(found.metrics, "var_cosine", q, 6 * 2 * q / rows + products * q),
        _beside(found.metrics, "stable_rank", rank, rank * chance / largest),
        Answer("largest error of σ²/N", worst, 0.0, chance),
        Answer("Σσ²/N", float(sigma.sum()), mean_square, _PRODUCTS * mean_square),
    ]


def _beside(metrics: dict[str, float], key: str, expected: float, chance: float) -> Answer:
    return Answer(key, metrics[key], expected, chance + _ROUNDING * expected)


def spread(decades: list[Decade]) -> float:
    """Largest deviation of the last three decades' time per row from their mean, as a share."""
    paces = [decade.nanoseconds_per_row for decade in decades[-3:]]
    mean = sum(paces) / len(paces)
    return max(abs(pace / mean - 1) for pace in paces)


def report(run: Run, rows: int, norm_ratio: float) -> dict[str, Any]:
    """What is written to the file of results."""
    return {
        "rows": rows,
        "norm_ratio": norm_ratio,
        "dim": DIM,
        "dtype": "bfloat16",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "aniso": version("aniso"),
        "cpu_kernels": _native.isa,
        "threads": torch.get_num_threads(),
        "seconds": round(sum(decade.seconds for decade in run.decades), 2),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
        "spread_of_last_three_decades": round(spread(run.decades), 4),
        "decades": [{**asdict(d), "ns_per_row": d.nanoseconds_per_row} for d in run.decades],
        "answers": [{**asdict(a), "inside": a.inside} for a in answers(run.state, norm_ratio)],
    }


def main() -> None:
    """Prints the table; exits with 1 when an answer is outside its stated error."""
    parser = argparse.ArgumentParser(description="A billion rows against closed forms.")
    parser.add_argument("--rows", type=float, default=1e9)
    parser.add_argument("--norm-ratio", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    given = parser.parse_args()
    rows = int(given.rows)
    name = f"billion-{rows}-{given.norm_ratio:g}"
    saved = given.out / f"{name}.partial.state.safetensors"
    run = stream(rows, given.norm_ratio, saved)
    facts = report(run, rows, given.norm_ratio)
    write_atomic(given.out / f"{name}.json", json.dumps(facts, indent=1).encode())
    for path in (saved, saved.with_suffix(".json")):
        path.unlink()
    print(f"{rows:,} rows × {DIM} bfloat16, {facts['threads']} threads: {facts['seconds']} s")
    print(f"peak memory {facts['peak_memory_gb']:.2f} GB, last three decades within "
          f"{facts['spread_of_last_three_decades']:.1%} of their mean")  # fmt: skip
    for answer in answers(run.state, given.norm_ratio):
        print(
            f"{answer.name:<22} {answer.found:<22.15g} {answer.expected:<22.15g} "
            f"± {answer.error:.1e} {'inside' if answer.inside else 'OUTSIDE'}"
        )
    if not all(answer["inside"] for answer in facts["answers"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
