"""All sums of one layer in one op: what a hook on a compiled model calls."""

from __future__ import annotations

import torch
from torch import Tensor

from aniso.ops._arrays import check_rows
from aniso.ops.gram import gram_into, pilot_of
from aniso.ops.row_moments import row_moments_into

torch.library.define(
    "aniso::capture_rows",
    "(Tensor x, Tensor? mask, Tensor(a!) sums, Tensor(b!) norm_sums, Tensor(c!) norm_range, "
    "Tensor(d!) abs_max, Tensor(e!) counts, Tensor(f!)? pilot=None, Tensor(g!)? raw=None, "
    "Tensor(h!)? unit=None, Tensor(i!)? totals=None, Tensor(j!)? noise=None) -> ()",
)
capture_rows_into = torch.ops.aniso.capture_rows.default
"""Adds rows x [..., d], mask [...], to the accumulators of `RowMoments` and `Grams`.

The first rows choose the pilot. Without the five accumulators of `Grams` only moments are added.
It has no kernel of its own: it runs row_moments and gram, with nothing decided in between that a
compiler would have to see.
"""


@torch.library.impl("aniso::capture_rows", "CompositeExplicitAutograd")
def _capture_rows(x: Tensor, mask: Tensor | None, *given: Tensor | None) -> None:
    rows = check_rows(x.detach().flatten(0, -2))
    kept = None if mask is None else mask.reshape(-1)
    accumulators = [tensor for tensor in given if tensor is not None]
    moments, grams = accumulators[:5], accumulators[5:]
    if grams:
        _choose_pilot(grams[0], rows, kept, moments[-1])
    row_moments_into(rows, kept, *moments)
    if grams:
        gram_into(rows, kept, *grams)


def _choose_pilot(pilot: Tensor, rows: Tensor, mask: Tensor | None, counts: Tensor) -> None:
    """Sets the pilot before the first rows; on a GPU without waiting for the counts."""
    if counts.device.type != "cpu":
        pilot.copy_(torch.where(counts[0] == 0, pilot_of(rows, mask), pilot))
    elif not int(counts[0]):
        pilot.copy_(pilot_of(rows, mask))


@torch.library.register_fake("aniso::capture_rows")  # type: ignore[untyped-decorator]
def _capture_rows_fake(x: Tensor, mask: Tensor | None, sums: Tensor, *_: Tensor | None) -> None:
    torch._check(x.ndim >= 2, lambda: "rows are [..., d]")
    torch._check(sums.shape[-1] == x.shape[-1], lambda: "accumulators and rows differ in d")
