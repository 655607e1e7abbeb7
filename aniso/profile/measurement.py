"""What was measured of one kernel on one input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from aniso.profile.ceilings import Ceilings

# Farther than this from both limits, neither of them is what bounds a kernel.
_NEAR_LIMIT = 0.2


@dataclass(frozen=True)
class Timing:
    """Seconds over the rounds: the median, and the quantiles between which three in five lie."""

    median: float
    p20: float
    p80: float
    rounds: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """The timing of these rounds."""
        low, middle, high = np.quantile(seconds, [0.2, 0.5, 0.8])
        return cls(float(middle), float(low), float(high), len(seconds))


@dataclass(frozen=True)
class Measurement:
    """One kernel × backend × dtype × shape.

    Attributes:
        op: The kernel's name.
        backend: Which implementation of it.
        dtype: Of the input.
        shape: Of the input, "32768x768".
        nbytes: Bytes the call must move at least.
        flops: Operations it must do at least.
        error: Error against float64.
        tolerance: The largest one at which a speed counts.
        timing: Seconds; None where the result is wrong: a wrong result has no speed.
        peer: Median seconds of the torch equivalent in the same rounds, where there is one.
    """

    op: str
    backend: str
    dtype: str
    shape: str
    nbytes: float
    flops: float
    error: float
    tolerance: float
    timing: Timing | None = None
    peer: float | None = None

    @property
    def correct(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes it the same measurement in another run."""
        return self.op, self.backend, self.dtype, self.shape

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: operations per byte."""
        return self.flops / self.nbytes

    @property
    def gb_per_s(self) -> float | None:
        """1e9 bytes per second."""
        return None if self.timing is None else self.nbytes / self.timing.median / 1e9

    @property
    def tflop_per_s(self) -> float | None:
        """1e12 operations per second."""
        return None if self.timing is None else self.flops / self.timing.median / 1e12

    @property
    def speedup(self) -> float | None:
        """Seconds of the torch equivalent over ours."""
        if self.timing is None or self.peer is None:
            return None
        return self.peer / self.timing.median

    def share(self, ceilings: Ceilings) -> float | None:
        """Of the nearer limit's speed, how much is reached."""
        if self.timing is None:
            return None
        return ceilings.floor(self.nbytes, self.flops, self.dtype)[0] / self.timing.median

    def bound(self, ceilings: Ceilings) -> str | None:
        """What bounds it: "memory", "compute", or "neither" below a fifth of both limits."""
        share = self.share(ceilings)
        if share is None:
            return None
        which = ceilings.floor(self.nbytes, self.flops, self.dtype)[1]
        return which if share >= _NEAR_LIMIT else "neither"

    def facts(self, ceilings: Ceilings) -> dict[str, Any]:
        """Everything in JSON types; what a wrong result has no right to is None."""
        timing = self.timing
        return {
            "op": self.op,
            "backend": self.backend,
            "dtype": self.dtype,
            "shape": self.shape,
            "correct": self.correct,
            "error": self.error if np.isfinite(self.error) else None,
            "tolerance": self.tolerance,
            "seconds": None if timing is None else timing.median,
            "seconds_p20": None if timing is None else timing.p20,
            "seconds_p80": None if timing is None else timing.p80,
            "rounds": 0 if timing is None else timing.rounds,
            "nbytes": self.nbytes,
            "flops": self.flops,
            "gb_per_s": self.gb_per_s,
            "tflop_per_s": self.tflop_per_s,
            "flops_per_byte": self.intensity,
            "share_of_ceiling": self.share(ceilings),
            "bound": self.bound(ceilings),
            "torch_seconds": None if timing is None else self.peer,
            "speedup": self.speedup,
        }
