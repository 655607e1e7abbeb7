"""The result of a profile: its table, its JSON form and its roofline plot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from aniso.profile.ceilings import Ceilings
    from aniso.profile.measurement import Measurement
    from aniso.profile.verdicts import Change

SCHEMA = 1


@dataclass(frozen=True)
class ProfileReport:
    """Measurements of one run, with the limits measured in it.

    Attributes:
        machine: Device, its name, threads, versions.
        ceilings: The limits.
        rows: One measurement per kernel, backend, dtype and shape.
        notes: What the reader has to know before believing a number.
    """

    machine: dict[str, Any]
    ceilings: Ceilings
    rows: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()

    @property
    def correct(self) -> bool:
        """Whether every result was right."""
        return all(row.correct for row in self.rows)

    def results(self) -> dict[str, Any]:
        """Everything in JSON types."""
        ceilings = self.ceilings
        return {
            "schema": SCHEMA,
            "machine": self.machine,
            "ceilings": {
                "read_gb_per_s": ceilings.read / 1e9,
                "copy_gb_per_s": ceilings.copy / 1e9,
                "matmul_tflop_per_s": {k: v / 1e12 for k, v in ceilings.matmul.items()},
            },
            "kernels": [row.facts(ceilings) for row in self.rows],
            "notes": list(self.notes),
        }

    def to_json(self) -> str:
        """`results()` as strict JSON, every number in full precision."""
        return json.dumps(self.results(), allow_nan=False, indent=1) + "\n"

    def table(self, width: int = 80, changes: tuple[Change, ...] = ()) -> Table:
        """A rich table at most `width` columns wide, with verdicts where there are `changes`."""
        from aniso.profile._table import profile_table

        return profile_table(self, width, changes)

    def headline(self) -> str:
        """The machine and its limits in one line."""
        ceilings, machine = self.ceilings, self.machine
        peaks = ", ".join(f"{dtype} {rate / 1e12:.3g}" for dtype, rate in ceilings.matmul.items())
        return (
            f"{machine['name']}, {machine['threads']} threads: "
            f"read {ceilings.read / 1e9:.1f} GB/s, copy {ceilings.copy / 1e9:.1f} GB/s, "
            f"matmul TFLOP/s: {peaks}"
        )

    def roofline(self) -> str:
        """Speed over arithmetic intensity, below the measured roofs, as the text of an SVG file.

        Raises:
            InputError: matplotlib is not installed, or nothing was measured.
        """
        from aniso.profile._plot import roofline

        return roofline(self)
