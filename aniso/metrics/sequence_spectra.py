"""Singular spectra of every sequence of a batch: tokens x dims, padding left out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError
from aniso.ops._arrays import DTYPES, as_tensor, restore_kind
from aniso.ops.batched_svd import SvdOutputs

if TYPE_CHECKING:
    from torch import Tensor

SEQUENCE_METRICS = (
    "sv_skewness",
    "sv_median_ratio",
    "explained_variance_1",
    "explained_variance_3",
    "explained_variance_10",
)
"""What is known of each sequence, by the keys of the same metric of a layer."""
CDF_STEPS = 256
_EXPLAINED = (1, 3, 10)
# Numbers of one call of the kernel: some hundred sequences, so that all threads have work.
_BATCH_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class SequenceSpectra:
    """Spectra of b sequences; arrays of the kind that came in, float64.

    Sequence i is the matrix X_i [t_i, d] of its kept tokens; σ are its min(t_i, d) singular values.

    Attributes:
        tokens: t_i, [b], int64.
        singular_values: σ, [b, min(t, d)], descending, NaN beyond min(t_i, d).
        metrics: Each [b]: "sv_skewness", biased, of σ (NaN below two tokens), "sv_median_ratio",
            median σ/σ₁, and "explained_variance_k" for k = 1, 3, 10, Σ_(i≤k)σ²/Σσ²; NaN where all
            tokens are zero or there are none.
        cdf: Share of σ/σ₁ at most each edge, [b, 257]; NaN as above.
        edges: 0, 1/256, … 1, [257].
    """

    tokens: Any
    singular_values: Any
    metrics: dict[str, Any]
    cdf: Any
    edges: Any


def sequence_spectra(x: Any, *, lengths: Any = None, mask: Any = None) -> SequenceSpectra:
    """Skewness, median, explained variance and distribution of σ, sequence by sequence.

    Sequences of one length are factorised together; padding never enters.

    Args:
        x: Hidden states, shape [b, t, d], float64/float32/float16/bfloat16, CPU or CUDA.
        lengths: Tokens of each sequence, padded on the right, shape [b], integers. Default: all t.
        mask: Tokens to keep, in place of lengths, shape [b, t], bool: padding on either side.

    Returns:
        SequenceSpectra; arrays of the kind of x.

    Raises:
        InputError: another shape or dtype, lengths out of range, lengths and mask together, or a
            kept token that is not finite.

    Time O(t d min(t, d)) per sequence. Equivalent to `reference.sequence_spectra`.
    Reference: Yan et al., "Addressing Token Uniformity in Transformers via Singular Value
    Transformation", UAI 2022.

    Example:
        >>> spectra = sequence_spectra(torch.eye(3).repeat(2, 1, 1), lengths=torch.tensor([2, 0]))
        >>> spectra.metrics["explained_variance_1"]
        tensor([0.5000,    nan], dtype=torch.float64)
    """
    states = as_tensor(x)
    kept = kept_tokens(states, lengths, mask)
    bad = (kept & ~finite_tokens(states)).nonzero()
    if len(bad):
        sequence, token = bad[0].tolist()
        raise InputError(
            f"token {token} of sequence {sequence} has NaN or infinite values; mask it out"
        )
    return _map(spectra_of(states, kept), restore_kind(x))


def kept_tokens(x: Tensor, lengths: Any, mask: Any) -> Tensor:
    """Which tokens of x [b, t, d] count, [b, t] bool.

    Raises:
        InputError: see `sequence_spectra`.
    """
    if x.ndim != 3 or x.shape[2] == 0 or x.dtype not in DTYPES:
        raise InputError(
            f"x is {str(x.dtype).removeprefix('torch.')} {list(x.shape)}; sequences are [b, t, d], "
            "float64, float32, float16 or bfloat16"
        )
    if lengths is not None and mask is not None:
        raise InputError("both lengths and mask were given; pass one of them")
    if mask is not None:
        return _checked_mask(as_tensor(mask, "mask"), x)
    if lengths is None:
        return x.new_ones(x.shape[:2], dtype=torch.bool)
    return _within(as_tensor(lengths, "lengths"), x)


def _checked_mask(mask: Tensor, x: Tensor) -> Tensor:
    if mask.dtype != torch.bool or mask.shape != x.shape[:2]:
        raise InputError(
            f"mask is {str(mask.dtype).removeprefix('torch.')} {list(mask.shape)}; it must be bool "
            f"{list(x.shape[:2])}, one value per token"
        )
    return mask.to(x.device)


def _within(lengths: Tensor, x: Tensor) -> Tensor:
    whole = not (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool)
    if not whole or lengths.shape != x.shape[:1]:
        raise InputError(
            f"lengths are {str(lengths.dtype).removeprefix('torch.')} {list(lengths.shape)}; they "
            f"must be integers [{len(x)}], one per sequence"
        )
    outside = ((lengths < 0) | (lengths > x.shape[1])).nonzero()
    if len(outside):
        i = int(outside[0])
        raise InputError(f"lengths[{i}] is {int(lengths[i])}; sequences have 0 to {x.shape[1]}")
    return torch.arange(x.shape[1], device=x.device) < lengths.to(x.device)[:, None]


def finite_tokens(x: Tensor) -> Tensor:
    """Which tokens have finite values only, [b, t] bool."""
    return torch.isfinite(x.abs().amax(dim=2))


def spectra_of(x: Tensor, kept: Tensor) -> SequenceSpectra:
    """`sequence_spectra` of checked sequences: the kept tokens are finite."""
    tokens = kept.sum(dim=1)
    sigma = torch.full((len(x), min(x.shape[1:])), math.nan, dtype=torch.float64, device=x.device)
    metrics = sigma.new_full((len(SEQUENCE_METRICS), len(x)), math.nan)
    edges = torch.linspace(0, 1, CDF_STEPS + 1, dtype=torch.float64, device=x.device)
    cdf = sigma.new_full((len(x), len(edges)), math.nan)
    for length in tokens.unique().tolist():
        if not length:
            continue
        for chosen in (tokens == length).nonzero()[:, 0].split(_per_call(length, x.shape[2])):
            values = _singular_values(x, kept, chosen, length)
            sigma[chosen, : values.shape[1]] = values
            metrics[:, chosen] = _metrics_of(values)
            cdf[chosen] = _distribution(values, edges)
    named = dict(zip(SEQUENCE_METRICS, metrics, strict=True))
    return SequenceSpectra(tokens, sigma, named, cdf, edges)


def _per_call(length: int, dim: int) -> int:
    return max(1, _BATCH_ELEMENTS // (length * dim))


def _singular_values(x: Tensor, kept: Tensor, chosen: Tensor, length: int) -> Tensor:
    which, token = kept[chosen].nonzero(as_tuple=True)
    matrices = x[chosen[which], token].reshape(len(chosen), length, x.shape[2])
    out = SvdOutputs.empty(matrices, min(matrices.shape[1:]))
    out.compute(matrices, "normal")
    return out.values


def _metrics_of(sigma: Tensor) -> Tensor:
    """SEQUENCE_METRICS of spectra [b, p], each a row of [5, b]."""
    largest, p = sigma[:, :1], sigma.shape[1]
    relative = sigma / torch.where(largest > 0, largest, math.nan)
    deviation = relative - relative.mean(dim=1, keepdim=True)
    spread = (deviation**2).mean(dim=1)
    skewness = (deviation**3).mean(dim=1) / torch.where(spread > 0, spread, math.nan) ** 1.5
    median = (relative[:, (p - 1) // 2] + relative[:, p // 2]) / 2
    energy = relative**2
    explained = [energy[:, :k].sum(dim=1) / energy.sum(dim=1) for k in _EXPLAINED]
    return torch.stack([skewness, median, *explained])


def _distribution(sigma: Tensor, edges: Tensor) -> Tensor:
    largest = sigma[:, :1]
    relative = (sigma / largest).flip(1).contiguous()
    below = torch.searchsorted(relative, edges.repeat(len(sigma), 1), right=True).double()
    return torch.where(largest > 0, below / sigma.shape[1], math.nan)


def _map(spectra: SequenceSpectra, restore: Any) -> SequenceSpectra:
    return SequenceSpectra(
        tokens=restore(spectra.tokens),
        singular_values=restore(spectra.singular_values),
        metrics={key: restore(values) for key, values in spectra.metrics.items()},
        cdf=restore(spectra.cdf),
        edges=restore(spectra.edges),
    )
