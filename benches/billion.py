"""A billion rows through all moments and both Grams, against answers known in closed form.

    python benches/billion.py [--rows 1e9]

Rows are x = (a, ±b₁, …, ±b₇₆₇) with independent fair signs, in bfloat16. All have the norm r,
r² = a² + Σb², and E xxᵀ = diag(a², b₁², …), so that with q = Σb⁴/r⁴

    mean cosine = a²/r²     variance of the cosine = q     σₖ²/N = a², b₁², b₂², …

up to the chance of the signs. Its size is known as well: the mean cosine of N rows is off by
√(2q)/N, the variance by 2q/N (both are degenerate U-statistics), and no eigenvalue of Σxxᵀ/N by
more than the norm of a matrix of independent entries bₖbₗ/√N, 2 max(a, b₁) r/√N. The errors stated
are six times the first two and 1.5 times the last, besides the rounding of float64 and what
`row_moments` states for the sum of directions of bfloat16 rows, 4e-6: rows that are alike in
magnitude round alike, so that this one does not average out.

Signs come from one block of random bits, with every column flipped by fair coins for each block:
sums and second moments of different blocks are as independent as those of fresh rows.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from aniso import LayerState
from aniso.dumps import Waiting
from aniso.dumps._read_ahead import read_ahead

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from aniso.dumps._file_reads import Scratch

DIM = 768
BLOCK_ROWS = 20_000
_SIGN = -(1 << 15)
_ROUNDING = 1e-9
_DIRECTIONS = 4e-6


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


def magnitudes() -> Tensor:
    """a, b₁, …, b₇₆₇ in bfloat16: b falls by 2⁻⁵ over the columns, a² is about Σb²."""
    b = torch.exp2(-5 * torch.arange(1, DIM) / DIM).bfloat16()
    a = b.double().square().sum().sqrt().bfloat16()
    return torch.cat([a[None], b])


def blocks(rows: int, seed: int = 0) -> Iterator[Tensor]:
    """The rows in blocks, the next one made while the caller works on this one."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(-(1 << 15), 1 << 15, (min(rows, BLOCK_ROWS), DIM), generator=generator)
    signed = (bits.short() & _SIGN) ^ magnitudes().view(torch.int16)
    signed[:, 0] = magnitudes().view(torch.int16)[0]

    def block(count: int, scratch: Scratch | None) -> Tensor:
        flips = torch.randint(0, 2, (DIM,), generator=generator).short() * _SIGN
        flips[0] = 0
        memory = scratch.pages(2 * count * DIM) if scratch else torch.empty(2 * count * DIM).byte()
        out = memory.view(torch.int16).view(count, DIM)
        torch.bitwise_xor(signed[:count], flips, out=out)
        return out.view(torch.bfloat16)

    counts = [min(BLOCK_ROWS, rows - start) for start in range(0, rows, BLOCK_ROWS)]
    yield from read_ahead([partial(block, n) for n in counts], Waiting(), reuse=True)


def stream(rows: int, seed: int = 0) -> tuple[LayerState, list[Decade]]:
    """The state of all rows, and the time of every decade from 1e6 on."""
    state, decades = LayerState(DIM), []
    done, since, began = 0, 0, time.perf_counter()
    for block in blocks(rows, seed):
        state.update(block)
        done += len(block)
        if done == rows or (done >= 10**6 and math.log10(done).is_integer()):
            now = time.perf_counter()
            decades.append(Decade(done, now - began, done - since))
            since, began = done, now
    return state, decades


def answers(state: LayerState) -> list[Answer]:
    """What was found beside the closed forms."""
    rows, values = state.moments.rows, magnitudes().double()
    squares = values.square()
    r2 = float(squares.sum())
    a2, q = float(squares[0]), float(squares[1:].square().sum()) / r2**2
    chance = 1.5 * 2 * float(values.max()) * math.sqrt(r2 / rows)
    chance_of_mean = 6 * math.sqrt(2 * q) / rows + 2 * _DIRECTIONS * a2 / r2
    found = state.compute()
    sigma = torch.from_numpy(found.singular_values.copy()).square() / rows
    worst = float((sigma - squares.sort(descending=True).values).abs().max())
    exact = [
        ("mean_norm", math.sqrt(r2)),
        ("rms_norm", math.sqrt(r2)),
    ]
    return [
        Answer("rows", rows, rows, 0),
        *(Answer(key, found.metrics[key], value, _ROUNDING * value) for key, value in exact),
        _beside(found.metrics, "mean_cosine", a2 / r2, chance_of_mean),
        _beside(found.metrics, "var_cosine", q, 6 * 2 * q / rows),
        _beside(found.metrics, "stable_rank", r2 / a2, r2 / a2 * chance / a2),
        Answer("largest error of σ²/N", worst, 0.0, chance),
        Answer("Σσ²/N", float(sigma.sum()), r2, _ROUNDING * r2),
    ]


def _beside(metrics: dict[str, float], key: str, expected: float, chance: float) -> Answer:
    return Answer(key, metrics[key], expected, chance + _ROUNDING * expected)


def main() -> None:
    """Prints the table; exits with 1 when an answer is outside its stated error."""
    parser = argparse.ArgumentParser(description="A billion rows against closed forms.")
    parser.add_argument("--rows", type=float, default=1e9)
    rows = int(parser.parse_args().rows)
    began = time.perf_counter()
    state, decades = stream(rows)
    found = answers(state)
    seconds = time.perf_counter() - began
    print(f"{rows:,} rows × {DIM} bfloat16, {torch.get_num_threads()} threads: {seconds:.1f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    for decade in decades:
        print(f"to {decade.rows:>14,} rows: {decade.nanoseconds_per_row:8.1f} ns per row")
    for answer in found:
        print(
            f"{answer.name:<22} {answer.found:<22.15g} {answer.expected:<22.15g} "
            f"± {answer.error:.1e} {'inside' if answer.inside else 'OUTSIDE'}"
        )
    if not all(answer.inside for answer in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
