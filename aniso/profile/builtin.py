"""The kernels of aniso, with what they cost by their formulas and what torch offers instead."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from aniso import _native, reference
from aniso.metrics.cosine_histogram import cosine_histogram
from aniso.moments import RowMoments
from aniso.ops import (
    cross_gram,
    gram,
    group_moments_into,
    row_moments,
    select_backend,
    svd,
    svdvals,
    truncated_svd,
)
from aniso.profile.kernels import Kernel, random_rows, relative_error
from aniso.transform import soft_decay

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from aniso.metrics import CosineHistogram
    from aniso.ops import SVD
    from aniso.profile.kernels import Shape

_ISAS = ("baseline", "avx2", "avx512")
_ROWS_PER_GROUP = 20
_BINS, _TOP, _ALPHA = 2048, 16, -0.6
# A cosine of a kernel is this close to float64: pairs that close to an edge may change bins.
_NEAR_EDGE = 2e-6
_F64, _F32, _BF16 = torch.float64, torch.float32, torch.bfloat16


def builtin_kernels() -> tuple[Kernel, ...]:
    """Every op on shapes of real models: widths of MiniLM (384), BERT (768), Llama 3 8B (4096)."""
    return (*_of_sums(), *_of_pairs(), *_of_spectra())


def _of_sums() -> tuple[Kernel, ...]:
    return (
        Kernel(
            op="row_moments",
            run=row_moments,
            reference=reference.row_moments,
            nbytes=_input_bytes,
            # ‖x‖² and x/‖x‖, then Σ of x, x̂, x², x̂²; |x| and its maximum.
            flops=lambda x: 11 * x.numel(),
            shapes=((16384, 768), (4096, 4096)),
            dtypes=(_F32, _BF16),
            # Σx̂_k² of float32, and all sums of half precision, meet in float32 first.
            tolerance={_F32: 1e-7, _BF16: 8e-6},
            peer=lambda x: torch.nn.functional.normalize(x, dim=1).sum(dim=0),
            error=_moments_error,
            backends=_row_moments_backends,
        ),
        Kernel(
            op="group_moments",
            run=_group_moments,
            reference=_group_reference,
            nbytes=lambda x, ids: x.nbytes + ids.nbytes,
            flops=lambda x, ids: 5 * x.numel(),
            shapes=((20000, 768),),
            dtypes=(_F32, _BF16),
            tolerance={_F32: 1e-9, _BF16: 4e-6},
            make=_rows_in_groups,
            peer=_torch_groups,
            backends=partial(_chosen, "group_moments", _group_moments),
        ),
        Kernel(
            op="gram",
            run=gram,
            reference=reference.gram,
            nbytes=_input_bytes,
            flops=lambda x: x.numel() * (x.shape[1] + 1),
            shapes=((8192, 768), (2048, 4096)),
            dtypes=(_F32, _BF16, _F64),
            tolerance={_F32: 1e-9, _BF16: 1e-6, _F64: 1e-12},
            peer=lambda x: x.T @ x,
            backends=partial(_chosen, "gram", gram),
        ),
        Kernel(
            op="cross_gram",
            run=cross_gram,
            reference=reference.cross_gram,
            nbytes=lambda x, y: x.nbytes + y.nbytes,
            flops=lambda x, y: 2 * x.numel() * y.shape[1],
            shapes=((8192, 768),),
            dtypes=(_F32, _BF16),
            tolerance=1e-12,
            make=_paired_rows,
            peer=lambda x, y: x.T @ y,
            backends=partial(_chosen, "cross_gram", cross_gram),
        ),
    )


def _of_pairs() -> tuple[Kernel, ...]:
    return (
        Kernel(
            op="pair_histogram",
            run=_histogram,
            reference=reference.pair_cosines,
            nbytes=_input_bytes,
            flops=lambda x: x.numel() * (len(x) - 1),
            shapes=((4096, 768),),
            dtypes=(_F32, _BF16),
            tolerance=0.0,
            peer=_torch_histogram,
            error=_histogram_error,
            backends=partial(_chosen, "pair_histogram", _histogram),
        ),
    )


def _of_spectra() -> tuple[Kernel, ...]:
    return (
        Kernel(
            op="svdvals",
            run=svdvals,
            reference=lambda x: torch.linalg.svdvals(x.double()),
            nbytes=_input_bytes,
            flops=_bidiagonalisation,
            shapes=((32, 128, 768), (64, 32, 384), (4, 512, 768)),
            dtypes=(_F32, _F64),
            tolerance={_F32: 1.2e-7, _F64: 1e-14},
            make=_sequences,
            peer=torch.linalg.svdvals,
            backends=partial(_chosen, "batched_svd", svdvals),
        ),
        Kernel(
            op="svd",
            run=svd,
            reference=lambda x: x.double(),
            nbytes=lambda x: 2 * x.nbytes,
            flops=lambda x: 3 * _bidiagonalisation(x),
            shapes=((32, 128, 768),),
            dtypes=(_F32,),
            tolerance=1e-6,
            make=_sequences,
            peer=partial(torch.linalg.svd, full_matrices=False),
            error=_product_error,
            backends=partial(_chosen, "batched_svd", svd),
        ),
        Kernel(
            op="truncated_svd",
            run=_top,
            reference=lambda x: torch.linalg.svdvals(x.double())[:_TOP],
            nbytes=_input_bytes,
            flops=lambda x: 4 * x.numel() * _TOP,
            shapes=((8192, 768),),
            dtypes=(_F32, _BF16),
            tolerance=1e-6,
            peer=lambda x: torch.svd_lowrank(x.float(), _TOP),
            backends=partial(_chosen, "truncated_svd", _top),
        ),
        Kernel(
            op="soft_decay",
            run=partial(soft_decay, alpha=_ALPHA),
            reference=_decay_reference,
            nbytes=lambda x: 2 * x.nbytes,
            flops=lambda x: 3 * _bidiagonalisation(x),
            shapes=((8, 128, 768),),
            dtypes=(_F32,),
            tolerance=1e-5,
            make=_sequences,
            peer=_torch_decay,
            backends=partial(_chosen, "spectral_map", partial(soft_decay, alpha=_ALPHA)),
        ),
    )


def _input_bytes(x: Tensor) -> float:
    return x.nbytes


def _bidiagonalisation(x: Tensor) -> float:
    """What the classical reduction of every matrix costs: 4 m n² − 4 n³/3 on the short side n."""
    long, short = max(x.shape[-2:]), min(x.shape[-2:])
    return math.prod(x.shape[:-2]) * (4 * long * short**2 - 4 * short**3 / 3)


def _chosen(op: str, run: Callable[..., Any], x: Tensor, *_: Any) -> dict[str, Callable[..., Any]]:
    return {select_backend(op, x).name: run}


def _row_moments_backends(x: Tensor) -> dict[str, Callable[[Tensor], RowMoments]]:
    """Every kernel that this build has for x's device, the chosen one first."""
    chosen = select_backend("row_moments", x).name
    backends: dict[str, Callable[[Tensor], RowMoments]] = {chosen: row_moments}
    if x.device.type == "cpu":
        known = _ISAS[1 : _ISAS.index(_native.isa)]
        return backends | {f"cpu-{isa}": partial(_row_moments_with, isa) for isa in known}
    if chosen != "triton":
        backends["triton"] = _row_moments_triton
    return backends


def _row_moments_with(isa: str, x: Tensor) -> RowMoments:
    moments = RowMoments.zeros(x.shape[1])
    threads = torch.get_num_threads()
    _native.row_moments_cpu(x, None, *moments.tensors(), threads=threads, isa=isa)
    return moments


def _row_moments_triton(x: Tensor) -> RowMoments:
    from aniso.triton_kernels.row_moments import row_moments as triton_row_moments

    moments = RowMoments.zeros(x.shape[1], x.device)
    triton_row_moments(x, None, *moments.tensors())
    return moments


def _moments_error(found: RowMoments, exact: RowMoments) -> float:
    return relative_error(found.tensors(), exact.tensors())


def _rows_in_groups(shape: Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """Sentences of equal length, one after the other."""
    return random_rows(shape, dtype, device), torch.arange(shape[0], device=device) // (
        _ROWS_PER_GROUP
    )


def _group_moments(x: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    groups = len(x) // _ROWS_PER_GROUP
    counts = torch.zeros(groups, dtype=torch.int64, device=x.device)
    sums, units = x.new_zeros((2, groups, x.shape[1]), dtype=_F64)
    squares = x.new_zeros(groups, dtype=_F64)
    group_moments_into(x, None, ids, counts, sums, units, squares)
    return counts, sums, units, squares


def _group_reference(x: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
    return reference.group_moments(x, ids)[1:]


def _torch_groups(x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    sums = x.new_zeros(2, len(x) // _ROWS_PER_GROUP, x.shape[1])
    sums[0].index_add_(0, ids, x)
    sums[1].index_add_(0, ids, torch.nn.functional.normalize(x, dim=1))
    return sums[0], sums[1]


def _paired_rows(shape: Shape, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    both = random_rows((shape[0], 2 * shape[1]), dtype, device)
    return both[:, : shape[1]].contiguous(), both[:, shape[1] :].contiguous()


def _histogram(x: Tensor) -> CosineHistogram:
    return cosine_histogram(x, bins=_BINS)


def _torch_histogram(x: Tensor) -> Tensor:
    units = torch.nn.functional.normalize(x.float(), dim=1)
    counts = torch.zeros(_BINS, device=x.device)
    for chunk in units.split(1024):
        counts += torch.histc(chunk @ units.T, _BINS, -1, 1)
    return counts


def _histogram_error(found: CosineHistogram, cosines: Tensor) -> float:
    """Share of pairs that lie in a wrong bin, those within 2e-6 of an edge aside."""
    ordered = cosines.sort().values
    edges = torch.as_tensor(found.edges).cpu()
    counts = torch.as_tensor(found.counts).cpu()
    if int(counts.sum()) != len(ordered):
        return math.inf
    # Every cosine lies above the first edge and below the last.
    below = counts.cumsum(0)[:-1]
    least = torch.searchsorted(ordered, edges[1:-1] - _NEAR_EDGE)
    most = torch.searchsorted(ordered, edges[1:-1] + _NEAR_EDGE)
    wrong = (least - below).clamp(min=0) + (below - most).clamp(min=0)
    return float(wrong.max()) / len(ordered)


def _sequences(shape: Shape, dtype: torch.dtype, device: str) -> Tensor:
    """Matrices whose values fall by two orders of magnitude, as those of sequences do."""
    rows = random_rows(shape, _F64, "cpu") * torch.logspace(0, -2, shape[-1], dtype=_F64)
    return rows.to(device, dtype)


def _product_error(found: SVD, x: Tensor) -> float:
    """‖A − U S Vᵀ‖_max over ‖A‖_max."""
    u, s, vh = (part.double().cpu() for part in (found.U, found.S, found.Vh))
    return relative_error((u * s[..., None, :]) @ vh, x)


def _top(x: Tensor) -> Tensor:
    values: Tensor = truncated_svd(x, _TOP).S
    return values


def _decay_reference(x: Tensor) -> Tensor:
    return torch.stack([reference.soft_decay(matrix, _ALPHA) for matrix in x])


def _torch_decay(x: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    f = -torch.log(1 - _ALPHA * (s + _ALPHA)) / _ALPHA
    mapped: Tensor = (u * (s[:, :1] / f[:, :1] * f)[:, None, :]) @ vh
    return mapped
