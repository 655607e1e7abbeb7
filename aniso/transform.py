"""Transforms of hidden states through their singular values: SoftDecay and its peers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from aniso.errors import InputError
from aniso.ops._arrays import check_matrices
from aniso.ops.spectral_map import (
    Spectrum,
    check_row_mask,
    map_spectrum,
    without_zeros,
)

MODES = ("paper", "continuous")


def soft_decay(
    x: Any,
    alpha: float | Tensor = -0.6,
    *,
    mode: str = "paper",
    mask: Any = None,
    flips: bool = False,
) -> Any:
    """Flattens the singular spectrum of every matrix, keeping the largest value: U K f(S) Vᵀ.

    f(s) = −ln(1 − α(s + α))/α, K = σ₁/f(σ₁). With `mode="continuous"` f(s) − f(0) stands for f:
    monotone, zero at zero.

    In paper mode f is negative for s < |α|: such directions come back with flipped sign, and
    because f(0) ≠ 0 the map jumps where a singular value reaches 0. `flips=True` counts them.
    Directions with σ = 0 give nothing (see `spectral_map`). A matrix for which no K > 0 exists
    comes back unchanged: σ₁ = 0, or, in paper mode, σ₁ ≤ |α|.

    Args:
        x: Matrices, shape [..., tokens, dims], float64/float32/float16/bfloat16, finite in kept
            rows. One matrix per sequence.
        alpha: α in (−1, 0), a number or a tensor of one element.
        mode: "paper" or "continuous".
        mask: Rows to keep, shape [..., tokens], bool: padding never enters the decomposition and
            comes back unchanged to the bit. Default: all.
        flips: Return the number of sign flips too: a pair.

    Returns:
        Like x; with flips also an int64 tensor [...]: singular values > 0 per matrix whose sign
        flipped. Differentiable once in x and alpha, by divided differences: also where
        singular values repeat, cluster or vanish. Where σ₁ itself repeats, K follows one of them.

    Raises:
        InputError: alpha outside (−1, 0) (not checked inside torch.compile), an unknown mode, or
            as `spectral_map`.

    Time O(m n p + p³) per matrix with p = min(m, n). Equivalent to `reference.soft_decay`.
    Reference: Yan et al., "Addressing Token Uniformity in Transformers via Singular Value
    Transformation", UAI 2022; the continuous mode is aniso's.

    Example:
        >>> soft_decay(torch.diag(torch.tensor([9.0, 1.0])), -0.5)[1, 1].round(decimals=3)
        tensor(1.2110)
    """
    rule = _SoftDecayRule(_check_alpha(alpha), _check_mode(mode))
    mapped, s = map_spectrum(x, mask, rule)
    return (mapped, rule.flips(s)) if flips else mapped


@dataclass(frozen=True)
class _SoftDecayRule:
    alpha: float | Tensor
    mode: str

    def __call__(self, s: Tensor, *, slopes: bool) -> Spectrum:
        f, defined = self._f(s), self._defined(s)
        # Slices, not entries: there may be no singular value at all.
        first = torch.where(defined[:, None], s[:, :1], 1.0)
        f_first = torch.where(defined[:, None], f[:, :1], 1.0)
        k = first / f_first
        if not slopes:
            return self._at_zero(s, k, Spectrum(k * f, defined=defined))
        decay = self._decay(s)
        derivative, curvature = (k / decay).detach(), (k * self.alpha / decay**2).detach()
        spectrum = self._at_zero(s, k, Spectrum(k * f, derivative, curvature, defined=defined))
        k_slope = 1 / f_first - first / (f_first**2 * self._decay(first))
        return replace(spectrum, top=(k_slope / k * spectrum.values).detach())

    def _at_zero(self, s: Tensor, k: Tensor, spectrum: Spectrum) -> Spectrum:
        if self.mode == "paper":
            return without_zeros(s, spectrum)
        if spectrum.derivative is None:
            return spectrum
        slope = k.sum(dim=1) / self._decay(s.new_zeros(()))
        return replace(spectrum, at_zero=slope.detach())

    def _decay(self, s: Tensor) -> Tensor:
        """D = 1 − α(s + α) = 1/f′(s)."""
        return 1 - self.alpha * (s + self.alpha)

    def _f(self, s: Tensor) -> Tensor:
        if self.mode == "paper":
            return -torch.log1p(-self.alpha * (s + self.alpha)) / self.alpha
        return -torch.log1p(-self.alpha * s / (1 - self.alpha**2)) / self.alpha

    def _defined(self, s: Tensor) -> Tensor:
        least = -self.alpha if self.mode == "paper" else 0.0
        return (s[:, :1] > least).all(dim=1)

    def flips(self, s: Tensor) -> Tensor:
        """How many singular values [..., k] > 0 get a negative value, [...]."""
        if self.mode != "paper":
            return torch.zeros(s.shape[:-1], dtype=torch.int64, device=s.device)
        flipped = (s > 0) & (s < -self.alpha) & (s[..., :1] > -self.alpha)
        return flipped.sum(dim=-1)


def _check_alpha(alpha: float | Tensor) -> float | Tensor:
    if isinstance(alpha, Tensor):
        if alpha.numel() != 1:
            raise InputError(f"alpha has shape {list(alpha.shape)}; it must be one number")
        alpha = alpha.reshape(()).double()
        if torch.compiler.is_compiling():
            return alpha
    value = _number(alpha)
    if not -1 < value < 0:
        raise InputError(f"alpha is {value}; SoftDecay needs −1 < alpha < 0")
    return alpha


def _number(alpha: float | Tensor) -> float:
    return float(alpha.detach()) if isinstance(alpha, Tensor) else float(alpha)


def _check_mode(mode: str) -> str:
    if mode not in MODES:
        raise InputError(f"mode is {mode!r}; use {' or '.join(map(repr, MODES))}")
    return mode


class SoftDecay(nn.Module):
    """`soft_decay` as a module, with α fixed or trained.

    A trained α is −sigmoid(θ): no step of an optimizer leaves (−1, 0). The paper trains α itself
    from −0.2, −0.5 or −0.8; learning rates differ by dα/dθ = α(1 + α), negative.

    Attributes:
        mode: "paper" or "continuous".
        theta: The parameter, when α is trained; else None, and the state dict is empty.
        flips: Sign flips of the last call per matrix (see `soft_decay`); None before the first.

    Raises:
        InputError: alpha outside (−1, 0), or an unknown mode.

    Example:
        >>> layer = SoftDecay(-0.5, trainable=True)
        >>> layer(torch.randn(2, 5, 8)).shape, float(layer.alpha.detach())
        (torch.Size([2, 5, 8]), -0.5)
    """

    def __init__(
        self, alpha: float = -0.6, *, mode: str = "paper", trainable: bool = False
    ) -> None:
        super().__init__()
        self.mode = _check_mode(mode)
        self.flips: Tensor | None = None
        self._fixed = float(_check_alpha(alpha))
        start = torch.tensor(math.log(-self._fixed / (1 + self._fixed)))
        self.theta = nn.Parameter(start) if trainable else None

    @property
    def alpha(self) -> float | Tensor:
        """α: a number, or −sigmoid(θ) in float64 when it is trained."""
        return self._fixed if self.theta is None else -torch.sigmoid(self.theta.double())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`soft_decay` of x [..., tokens, dims]; counts the sign flips."""
        mapped, self.flips = soft_decay(x, self.alpha, mode=self.mode, mask=mask, flips=True)
        result: Tensor = mapped
        return result

    def extra_repr(self) -> str:
        """What print(module) says."""
        trainable = self.theta is not None
        return f"alpha={_number(self.alpha):g}, mode={self.mode!r}, {trainable=}"


class Whitening(nn.Module):
    """Kept rows centred and their covariance (1/N) made the identity: √N U Vᵀ of the centred rows.

    Directions in which the centred rows do not vary stay at zero: fewer rows than dimensions
    whiten the space they span. This is the symmetric (ZCA) form; Su et al. end with a rotation by
    V that no cosine and no distance sees. Centred in float64, and decomposed there: a direction
    that is only rounding would be blown up.

    Reference: Su et al., "Whitening Sentence Representations for Better Semantics and Faster
    Retrieval", 2021.

    Example:
        >>> white = Whitening()(torch.randn(50, 4, dtype=torch.float64))
        >>> bool(torch.allclose(white.T @ white / 50, torch.eye(4, dtype=torch.float64)))
        True
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The white rows of x [..., rows, dims]; rows outside the mask unchanged."""
        centred, counts = _centred(x, mask)

        def rule(s: Tensor, *, slopes: bool) -> Spectrum:
            values = counts.reshape(-1, 1).sqrt().expand(s.shape)
            flat = torch.zeros_like(s) if slopes else None
            return without_zeros(s, Spectrum(values, flat, flat))

        return _restored(map_spectrum(centred, mask, rule)[0], x, mask)


class AllButTheTop(nn.Module):
    """Kept rows centred, without their components along the `top` first principal directions.

    The mean of the rows and the largest singular values of the centred rows are set to zero.
    Where the last one removed equals the first one kept, neither is determined; the gradient then
    counts no slope between them.

    Args:
        top: How many directions to remove; Mu & Viswanath take d/100.

    Raises:
        InputError: top is negative.

    Reference: Mu & Viswanath, "All-but-the-Top: Simple and Effective Postprocessing for Word
    Representations", ICLR 2018.

    Example:
        >>> float(torch.linalg.matrix_norm(AllButTheTop(1)(torch.eye(2))))
        0.0
    """

    def __init__(self, top: int = 1) -> None:
        super().__init__()
        if top < 0:
            raise InputError(f"top is {top}; pass how many directions to remove, 0 or more")
        self.top = top

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The rows of x [..., rows, dims] less mean and top; those outside the mask unchanged."""
        centred, _ = _centred(x, mask)
        return _restored(map_spectrum(centred, mask, self._rule)[0], x, mask)

    def _rule(self, s: Tensor, *, slopes: bool) -> Spectrum:
        kept = torch.arange(s.shape[1], device=s.device) >= self.top
        values = torch.where(kept, s, 0.0)
        if not slopes:
            return Spectrum(values)
        at_zero = s.new_full((len(s),), float(self.top < s.shape[1]))
        return Spectrum(values, kept.expand(s.shape).to(s.dtype), torch.zeros_like(s), at_zero)


def _centred(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows less the mean of the kept ones, float64, and the number N of kept rows [...]."""
    keep = check_row_mask(mask, check_matrices(x))
    rows = x.double()
    if keep is None:
        return rows - rows.mean(dim=-2, keepdim=True), rows.new_full(x.shape[:-2], x.shape[-2])
    counts = keep.sum(dim=-1).double()
    sums = torch.where(keep[..., None], rows, 0).sum(dim=-2)
    means = sums / counts.clamp(min=1)[..., None]
    return rows - means[..., None, :], counts


def _restored(mapped: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    """In x's dtype, and x itself in the rows outside the mask."""
    mapped = mapped.to(x.dtype)
    return mapped if mask is None else torch.where(mask[..., None], mapped, x)
