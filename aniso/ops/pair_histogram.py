"""Cosines of all pairs of rows, counted into bins tile by tile; the N × N matrix never exists."""

from __future__ import annotations

import torch
from torch import Tensor

from aniso import _native
from aniso.ops._arrays import unit_columns
from aniso.ops._double import directions, inverse_norms
from aniso.ops.backend import Backend, device_of, product_backend, register_chooser

MAX_BINS = 65_536
# One tile of the plain path: 16 MiB of float32.
_TILE = 2048
# Products of bfloat16 rows are taken as they are; outside, they might leave float32.
_LEAST, _LARGEST = 1e-15, 1e15

torch.library.define(
    "aniso::pair_histogram",
    "(Tensor a, Tensor? b, float low, float high, Tensor(a!) counts, Tensor(b!) extremes) -> ()",
)
pair_histogram_into = torch.ops.aniso.pair_histogram.default
"""Adds the cosines of all pairs to counts and extremes.

Pairs i < j of the rows of a [n, d], or all pairs of a row of a and a row of b [m, d]. Rows must be
finite and not zero. counts, int64 [bins + 2]: below low, the bins of equal width over [low, high]
(half open, the last one closed), above high. extremes, float64 [2]: least and largest cosine;
start at +inf and −inf. A cosine is within 2e-6 of its float64 value (typically 1e-7), and clamped
to [−1, 1].
"""


@torch.library.impl("aniso::pair_histogram", "CompositeExplicitAutograd")
def _pair_histogram(
    a: Tensor, b: Tensor | None, low: float, high: float, counts: Tensor, extremes: Tensor
) -> None:
    if len(a) == 0 or (b is not None and len(b) == 0):
        return
    backend = _choose(a)
    if backend.name == "triton":
        with device_of(a):
            _count_pairs(a, b, low, high, counts, extremes)
        return
    a, b = _multipliable(a), None if b is None else _multipliable(b)
    if b is not None and a.dtype != b.dtype:
        a, b = a.float(), b.float()
    if backend.name.startswith("cpu-"):
        threads, isa = torch.get_num_threads(), backend.name.removeprefix("cpu-")
        _native.pair_histogram_cpu(a, b, low, high, counts, extremes, threads=threads, isa=isa)
    else:
        _count_tiles(a, b, low, high, counts, extremes)


@torch.library.register_fake("aniso::pair_histogram")  # type: ignore[untyped-decorator]
def _pair_histogram_fake(
    a: Tensor, b: Tensor | None, low: float, high: float, counts: Tensor, extremes: Tensor
) -> None:
    torch._check(a.ndim == 2, lambda: "rows are [n, d]")


def _multipliable(x: Tensor) -> Tensor:
    """Rows the kernel can take: not float64, and bfloat16 only of moderate size."""
    if x.dtype == torch.float64:
        return _directions(x)
    if x.dtype == torch.bfloat16:
        largest = x.abs().amax(dim=1).float()
        if float(largest.min()) < _LEAST or float(largest.max()) > _LARGEST:
            return _directions(x)
    return unit_columns(x)


def _directions(x: Tensor) -> Tensor:
    return directions(x.double()).float()


def _count_pairs(
    a: Tensor, b: Tensor | None, low: float, high: float, counts: Tensor, extremes: Tensor
) -> None:
    """The Triton kernel: raw rows of any range multiplied, inverse norms applied to the products.

    Directions of float64 rows in float32: as many products as float64 has, at 8 times the rate.
    """
    from aniso.triton_kernels.pair_histogram import pair_histogram

    if a.dtype == torch.float64:
        a = _directions(a)
    if b is not None:
        b = _directions(b) if b.dtype == torch.float64 else b
        if a.dtype != b.dtype:
            a, b = a.float(), b.float()
    rows_b, inverse_b = (None, None) if b is None else (unit_columns(b), inverse_norms(b))
    rows_a, inverse_a = unit_columns(a), inverse_norms(a)
    pair_histogram(rows_a, inverse_a, rows_b, inverse_b, low, high, counts, extremes)


def _count_tiles(
    a: Tensor, b: Tensor | None, low: float, high: float, counts: Tensor, extremes: Tensor
) -> None:
    units = _directions(a)
    partners = units if b is None else _directions(b)
    bins = len(counts) - 2
    for i in range(0, len(units), _TILE):
        for j in range(0, min(i + 1, len(units)) if b is None else len(partners), _TILE):
            cosines = (units[i : i + _TILE] @ partners[j : j + _TILE].T).clamp_(-1, 1)
            if b is None and i == j:
                cosines = cosines[torch.ones_like(cosines, dtype=torch.bool).tril(-1)]
            if cosines.numel() == 0:
                continue
            slots = ((cosines - low) * (bins / (high - low)) + 1).long().clamp_(1, bins)
            slots = torch.where(cosines < low, 0, slots)
            slots = torch.where(cosines > high, bins + 1, slots)
            counts += torch.bincount(slots.flatten(), minlength=bins + 2)
            extremes[0] = torch.minimum(extremes[0], cosines.min())
            extremes[1] = torch.maximum(extremes[1], cosines.max())


def _choose(x: Tensor) -> Backend:
    if x.device.type != "cpu":
        return product_backend(x, "tiles on tensor cores and counters fused")
    if _native.has_amx and x.shape[-1] <= _native.pair_histogram_max_dim:
        return Backend("cpu-amx", "tiles and counters fused on this processor's matrix unit")
    return Backend(f"cpu-{_native.isa}", "tiles of float32 and counters fused")


register_chooser("pair_histogram", _choose)
