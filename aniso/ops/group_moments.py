"""Sums over the rows of every group: the op behind all statistics of groups."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aniso import _native
from aniso.errors import InputError
from aniso.ops._arrays import check_mask, check_rows, unit_columns
from aniso.ops._double import finite_rows
from aniso.ops._runs import check_groups, runs_of
from aniso.ops.backend import compiled_backend, register_chooser

if TYPE_CHECKING:
    from aniso.moments import GroupMoments
    from aniso.ops._runs import DividedRuns, Runs

# One thread of a CPU, or one block of a GPU, sums a run. Longer runs are divided, into at most
# 2 · _PIECES pieces in all: enough to fill a GPU (estimated), and 32 KiB of sums per column.
_PIECES = 1024
_SHORTEST_PIECE = 512

torch.library.define(
    "aniso::group_moments",
    "(Tensor x, Tensor? mask, Tensor index, Tensor(a!) counts, Tensor(b!)? sums, "
    "Tensor(c!)? unit_sums, Tensor(d!) square_norms) -> ()",
)
group_moments_into = torch.ops.aniso.group_moments.default
"""Adds rows x [n, d] to the sums of their groups, index [n] int64: 0 … G − 1, or negative for none.

counts [G] += rows with a direction, sums [G, d] += Σx, unit_sums [G, d] += Σx̂ (None leaves one
out), square_norms [G] += Σ‖x‖²; float64, counts int64. Non-finite rows are left out.
"""

# One kernel serves both uses. It walks rows in the order of their groups and leaves of each either
# its sums (the additive state, above) or three products of them (`group_products`); scattering rows
# in the order of x would need atomics, and [G, d] of memory in both.


@torch.library.impl("aniso::group_moments", "CompositeExplicitAutograd")
def _group_moments(
    x: Tensor,
    mask: Tensor | None,
    index: Tensor,
    counts: Tensor,
    sums: Tensor | None,
    unit_sums: Tensor | None,
    square_norms: Tensor,
) -> None:
    x = unit_columns(check_rows(x))
    runs = runs_of(check_groups(index, x, "index"), check_mask(mask, x))
    if len(runs.slot) and int(runs.slot[-1]) >= len(counts):
        raise InputError(
            f"index names group {int(runs.slot[-1])}, but the accumulators have {len(counts)} "
            "groups; make them larger"
        )
    outputs = (counts, square_norms, sums, unit_sums)
    divided = runs.divided(_longest_run(x))
    if divided is None:
        _add_runs(x, runs, (*outputs, None, None))
        return
    _add_runs(x, divided.short, (*outputs, None, None))
    for total, part in zip(outputs, _sums_of_long(x, divided), strict=True):
        if total is not None:
            total.index_add_(0, divided.slots, part)


@torch.library.register_fake("aniso::group_moments")  # type: ignore[untyped-decorator]
def _group_moments_fake(
    x: Tensor,
    mask: Tensor | None,
    index: Tensor,
    counts: Tensor,
    sums: Tensor | None,
    unit_sums: Tensor | None,
    square_norms: Tensor,
) -> None:
    torch._check(x.ndim == 2, lambda: "rows are [n, d]")
    torch._check(index.shape[0] == x.shape[0], lambda: "index and rows differ in n")


def add_rows(moments: GroupMoments, x: Tensor, mask: Tensor | None, groups: Tensor) -> GroupMoments:
    """The moments with rows x [n, d] added: in place, or wider where groups [n] int64 are new."""
    member = groups >= 0 if mask is None else (groups >= 0) & mask
    wider = moments.covering(groups[member].unique())
    index = torch.where(member, torch.searchsorted(wider.ids, groups), -1)
    before = wider.counts.sum()
    outputs = (wider.counts, wider.sums, wider.unit_sums, wider.square_norms)
    group_moments_into(x, None, index, *outputs)
    added, members = wider.counts.sum() - before, member.sum()
    # Rows without a direction are zero, or not finite.
    wider.rows += added if added == members else finite_rows(x, member).sum()
    return wider


def group_products(x: Tensor, runs: Runs) -> tuple[Tensor, Tensor, Tensor]:
    """What cosines within and between groups need of their sums, without the sums.

    Args:
        x: Rows, [n, d].
        runs: One run per group; what they have in `slot` does not matter.

    Returns:
        counts [G] int64: rows with a direction. Products [G, 3] float64: ‖ŝ‖², ŝ·m, ‖m‖² of ŝ = Σx̂
        and m = Σx times a power of two. Total [d] float64: Σx̂ of all runs.

    Time O(n d), one read of x (two on a GPU); memory O(G + d).
    """
    x = unit_columns(x)
    counts, products, total = _products(x, runs, 1.0)
    if x.dtype == torch.float64:
        mean_square = products[:, 2]
        for scale, out in ((2.0**600, mean_square < 1e-280), (2.0**-600, ~(mean_square < 1e280))):
            again = out & (counts > 0)
            if bool(again.any()):
                products[again] = _products(x, runs.selected(again), scale)[1]
    return counts, products, total


def _products(x: Tensor, runs: Runs, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The same with m = scale·Σx."""
    runs = replace(runs, slot=torch.arange(len(runs.slot), device=x.device))
    counts = torch.zeros_like(runs.slot)
    products = x.new_zeros((len(counts), 3), dtype=torch.float64)
    totals = x.new_zeros((_writers(x), x.shape[1]), dtype=torch.float64)
    outputs = (counts, torch.zeros_like(products[:, 0]), None, None, products, totals)
    divided = runs.divided(_longest_run(x))
    _add_runs(x, runs if divided is None else divided.short, outputs, scale)
    total = totals.sum(0)
    if divided is not None:
        counts[divided.slots], _, sums, s = _sums_of_long(x, divided)
        m = sums * scale
        products[divided.slots] = torch.stack([(s * s).sum(1), (s * m).sum(1), (m * m).sum(1)], 1)
        total += s.sum(0)
    return counts, products, total


def _writers(x: Tensor) -> int:
    """Rows of totals: one per thread, or as many blocks as fill a GPU, of few columns more."""
    return torch.get_num_threads() if x.device.type == "cpu" else max(_PIECES, 2**20 // x.shape[1])


def _longest_run(x: Tensor) -> int:
    return max(_SHORTEST_PIECE, x.shape[0] // _PIECES)


def _sums_of_long(x: Tensor, divided: DividedRuns) -> list[Tensor]:
    """Counts, Σ‖x‖², Σx and Σx̂ of every long run."""
    pieces = len(divided.pieces.slot)
    counts = torch.zeros(pieces, dtype=torch.int64, device=x.device)
    square_norms = x.new_zeros(pieces, dtype=torch.float64)
    sums, unit_sums = x.new_zeros((2, pieces, x.shape[1]), dtype=torch.float64)
    parts = (counts, square_norms, sums, unit_sums)
    _add_runs(x, divided.pieces, (*parts, None, None))
    return [divided.folded(part) for part in parts]


def _add_runs(x: Tensor, runs: Runs, outputs: tuple[Any, ...], scale: float = 1.0) -> None:
    """Runs the kernel; outputs are counts, square norms, and either sums or products."""
    if compiled_backend(x).name == "triton":
        from aniso.triton_kernels.group_moments import group_moments as triton_group_moments

        with torch.cuda.device(x.device):
            arguments: tuple[Any, ...] = (x, *runs.tensors(), *outputs, scale)
            triton_group_moments(*arguments)
    elif x.device.type == "cuda":
        with torch.cuda.device(x.device):
            size = _native.group_moments_workspace_bytes(len(runs.order))
            space = torch.empty(size, dtype=torch.uint8, device=x.device)
            stream = torch.cuda.current_stream(x.device).cuda_stream
            _native.group_moments_cuda(
                x, runs.tensors(), outputs, scale, workspace=space, stream=stream
            )
    else:
        threads = torch.get_num_threads()
        _native.group_moments_cpu(
            x, runs.tensors(), outputs, scale, threads=threads, isa=_native.isa
        )


register_chooser("group_moments", compiled_backend)
