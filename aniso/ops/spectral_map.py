"""U f(S) Vᵀ of batches of matrices, forward and backward, over the kept rows of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from aniso.errors import InputError
from aniso.ops._arrays import DTYPES, as_tensor, restore_kind
from aniso.ops.backend import Backend, register_chooser, select_backend
from aniso.ops.batched_svd import batched_svd_into

if TYPE_CHECKING:
    from collections.abc import Callable

# Below this relative gap of two singular values f' is averaged between them instead of subtracting:
# there the subtraction loses 12 bits, and the average by two points errs by gap⁴/4320, 1e-18.
_NEAR = 2.0**-12
_GAUSS = 1 / math.sqrt(3)


@dataclass(frozen=True)
class Spectrum:
    """What a map does to the singular values s [b, k] of b matrices.

    Attributes:
        values: g_i, what replaces s_i, [b, k] float64; differentiable in s and in parameters.
        slopes: Γ⁻_ij = (g_i − g_j)/(s_i − s_j) of i ≠ j, and its limit where s_i = s_j, [b, k, k];
            the diagonal is not read. None when no gradient in x is asked for.
        at_zero: Slope of the map at zero, [b], 0 where it is not continuous there. With `slopes`.
        defined: Matrices that the map is defined for, [b] bool: the others come back unchanged.
            None: all.
    """

    values: Tensor
    slopes: Tensor | None = None
    at_zero: Tensor | None = None
    defined: Tensor | None = None


class SpectrumRule(Protocol):
    """Turns singular values [b, k] into the spectrum of a map."""

    def __call__(self, s: Tensor, *, slopes: bool) -> Spectrum:
        """The map's values at s, and its slopes when asked for."""


def ratio(numerator: Tensor, denominator: Tensor, at_zero: Tensor | float) -> Tensor:
    """Numerator/denominator where the denominator is positive, elsewhere at_zero."""
    positive = denominator > 0
    return torch.where(positive, numerator / torch.where(positive, denominator, 1.0), at_zero)


def pairs(t: Tensor) -> tuple[Tensor, Tensor]:
    """t_i and t_j of all pairs of the last dimension, to be broadcast: [..., k, 1], [..., 1, k]."""
    return t[..., :, None], t[..., None, :]


def without_zeros(s: Tensor, values: Tensor, slopes: Tensor | None) -> Spectrum:
    """The spectrum of a map with f(0) ≠ 0: directions with s = 0 give nothing.

    X does not say which directions they are. What moves them meets the slope g_i/s_i against the
    directions that X has, and none among themselves.
    """
    values = torch.where(s > 0, values, 0.0)
    if slopes is None:
        return Spectrum(values)
    return Spectrum(values, _slopes_at_zeros(s, values, slopes, 0.0), s.new_zeros(len(s)))


def _slopes_at_zeros(s: Tensor, values: Tensor, slopes: Tensor, at_zero: Tensor | float) -> Tensor:
    """The slopes, with those of pairs that have an s = 0 put in."""
    (s_i, s_j), (g_i, g_j) = pairs(s), pairs(values)
    with_zero = ratio(g_i + g_j, s_i + s_j, at_zero)
    return torch.where((s_i > 0) & (s_j > 0), slopes, with_zero).detach()


def spectral_map(x: Any, f: Callable[[Tensor], Tensor], *, mask: Any = None) -> Any:
    """Replaces the singular values of every matrix: U f(S) Vᵀ, differentiable.

    Gradient by divided differences, with P = Uᵀ C V for the incoming C, its symmetric part S and
    its skew part A: dX = U(Γ⁻∘S + Γ⁺∘A)Vᵀ + U diag(f/σ)UᵀC(I − VVᵀ) + (I − UUᵀ)C V diag(f/σ)Vᵀ,
    Γ⁻_ij = (f_i − f_j)/(σ_i − σ_j), Γ⁺_ij = (f_i + f_j)/(σ_i + σ_j). Singular vectors are never
    differentiated: repeated, clustered and vanishing σ have finite gradients. Where two σ all but
    meet, Γ⁻ is the mean of f' between them, taken by autograd at two points.

    Directions whose σ cannot be told from 0 (its certified lower bound is 0) are not determined by
    X: they give nothing, whatever f(0) is. Where f(0) = 0 with a finite f'(0), the gradient has
    them with slope f'(0); otherwise they take no part in it beyond f_i/σ_i of the others.

    Args:
        x: Matrices, shape [..., m, n], float64/float32/float16/bfloat16, finite in kept rows.
        f: New singular values from old ones, elementwise: float64 tensors of any shape. May
            have parameters, which get their gradients.
        mask: Rows to keep, shape [..., m], bool: the others never enter the decomposition and
            come back unchanged to the bit, wherever they lie. Default: all.

    Returns:
        Like x, [..., m, n]. Differentiable once, in x and in parameters of f.

    Raises:
        InputError: fewer than two dimensions, another dtype, mask not bool [..., m], a value in a
            kept row that is not finite (the first such matrix is named), or f changes the shape.

    Time O(m n p + p³) per matrix with p = min(m, n); factors in float32 (float64 for float64
    input), singular values, differences and products in float64. Equivalent to
    `reference.spectral_map`.
    Reference: Noferini, "A Formula for the Fréchet Derivative of a Generalized Matrix Function",
    SIAM J. Matrix Anal. Appl. 38 (2017).

    Example:
        >>> spectral_map(torch.diag(torch.tensor([4.0, 9.0])), torch.sqrt)
        tensor([[2., 0.],
                [0., 3.]])
    """
    return map_spectrum(x, mask, _ElementwiseRule(f))[0]


def map_spectrum(x: Any, mask: Any, rule: SpectrumRule) -> tuple[Any, Tensor]:
    """U g Vᵀ with g = rule(S).values for every matrix, and S [..., k] float64; see `spectral_map`.

    Raises:
        InputError: as `spectral_map`.
    """
    rows = x if isinstance(x, Tensor) else as_tensor(x)
    keep = check_row_mask(mask, check_matrices(rows))
    batch = math.prod(rows.shape[:-2])
    matrices = rows.reshape(batch, *rows.shape[-2:])
    keep = None if keep is None else keep.reshape(batch, rows.shape[-2])
    u, s, vh = torch.ops.aniso.spectral_factors(matrices, keep)
    spectrum = rule(s, slopes=torch.is_grad_enabled() and rows.requires_grad)
    if spectrum.defined is not None:
        ones = torch.ones(matrices.shape[:2], dtype=torch.bool, device=rows.device)
        keep = (ones if keep is None else keep) & spectrum.defined[:, None]
    mapped = torch.ops.aniso.spectral_map(
        matrices, keep, u, s.detach(), vh, spectrum.values, spectrum.slopes, spectrum.at_zero
    )
    singular = s.detach().reshape(*rows.shape[:-2], s.shape[1])
    return restore_kind(x)(mapped.reshape(rows.shape)), singular


def check_matrices(x: Tensor) -> Tensor:
    """`x` itself when it is matrices [..., m, n] of a floating dtype; else InputError."""
    if x.ndim < 2:
        raise InputError(f"x has shape {list(x.shape)}; matrices are [..., m, n]")
    if x.dtype not in DTYPES:
        raise InputError(
            f"x has dtype {str(x.dtype).removeprefix('torch.')}; "
            "use float64, float32, float16 or bfloat16"
        )
    return x


def check_row_mask(mask: Any, x: Tensor) -> Tensor | None:
    """The mask as a bool tensor [..., m] on x's device, or None; else InputError."""
    if mask is None:
        return None
    tensor = as_tensor(mask, "mask")
    if tensor.dtype != torch.bool or tensor.shape != x.shape[:-1]:
        raise InputError(
            f"mask is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}; "
            f"it must be bool {list(x.shape[:-1])}, one value per row of x"
        )
    return tensor.to(x.device)


@dataclass(frozen=True)
class _ElementwiseRule:
    """g_i = f(s_i) for an elementwise f."""

    f: Callable[[Tensor], Tensor]

    def __call__(self, s: Tensor, *, slopes: bool) -> Spectrum:
        if not slopes:
            return Spectrum(torch.where(s > 0, self._f(torch.where(s > 0, s, 1.0)), 0.0))
        at_zero, continuous = self._at_zero(s)
        used = (s > 0) | continuous
        given = torch.where(used, s, 1.0)
        values = torch.where(used, self._f(given), 0.0)
        differences = self._divided_differences(given.detach())
        slope = _slopes_at_zeros(s, values, differences, at_zero)
        return Spectrum(values, slope, at_zero.expand(len(s)))

    def _f(self, s: Tensor) -> Tensor:
        values = self.f(s)
        if values.shape != s.shape:
            raise InputError(
                f"f turns singular values {list(s.shape)} into {list(values.shape)}; "
                "it must be elementwise"
            )
        return values.to(torch.float64)

    def _derivative(self, s: Tensor) -> Tensor:
        slope: Tensor = torch.func.grad(lambda t: self._f(t).sum())(s)
        return slope

    def _at_zero(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """f'(0), or 0 where f is not 0 or has no finite slope at 0; and whether it is and has."""
        zero = s.new_zeros(1)
        slope = self._derivative(zero).detach()
        continuous = (self._f(zero) == 0) & torch.isfinite(slope)
        return torch.where(continuous, slope, 0.0), continuous

    def _divided_differences(self, s: Tensor) -> Tensor:
        """(f(s_i) − f(s_j))/(s_i − s_j), or the mean of f' between them by Gauss's two points."""
        (s_i, s_j), (f_i, f_j) = pairs(s), pairs(self._f(s).detach())
        gap, middle = s_i - s_j, (s_i + s_j) / 2
        near = gap.abs() <= _NEAR * middle
        centre = torch.where(near, middle, 1.0)
        offset = torch.where(near, gap / 2 * _GAUSS, 0.0)
        mean = (self._derivative(centre - offset) + self._derivative(centre + offset)) / 2
        return torch.where(near, mean, (f_i - f_j) / torch.where(near, 1.0, gap)).detach()


torch.library.define(
    "aniso::spectral_factors", "(Tensor x, Tensor? mask) -> (Tensor, Tensor, Tensor)"
)


@torch.library.impl("aniso::spectral_factors", "CompositeExplicitAutograd")
def _factors(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """U [b, m, k], S [b, k] float64 and Vh [b, k, n] of the kept rows, k = min(m, n).

    U is zero in rows that are not kept. S is 0 where it cannot be told from it. U (m ≤ n) or V
    (m > n) spans all of its space, also where S is 0.
    """
    u, s, vh = _empty_factors(x)
    if u.numel() == 0 or vh.numel() == 0:
        return u, s, vh
    if mask is None:
        return _decompose(x)
    order = torch.argsort(~mask, dim=1, stable=True)
    # Packed to the front: left and right padding are one matrix.
    order = order[:, : _packed_rows(x, mask), None]
    kept = mask[:, :, None].gather(1, order)
    packed = torch.where(kept, x.gather(1, order.expand(-1, -1, x.shape[2])), 0)
    left, values, right = _decompose(packed)
    k = values.shape[1]
    u[:, :, :k].scatter_(1, order.expand(-1, -1, k), torch.where(kept, left, 0))
    s[:, :k], vh[:, :k] = values, right
    return u, s, vh


@torch.library.register_fake("aniso::spectral_factors")  # type: ignore[untyped-decorator]
def _empty_factors(x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    b, m, n = x.shape
    k = min(m, n)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    u = x.new_zeros((b, m, k), dtype=dtype)
    return u, x.new_zeros((b, k), dtype=torch.float64), x.new_zeros((b, k, n), dtype=dtype)


def _packed_rows(x: Tensor, mask: Tensor) -> int:
    """Rows of the longest matrix; n at least where V is to be complete."""
    longest = max(1, int(mask.sum(dim=1).max()))
    return longest if x.shape[1] <= x.shape[2] else max(longest, x.shape[2])


def _decompose(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    left, values, right = _empty_factors(x)
    bounds, checks = values.new_empty(2, *values.shape), values.new_empty(2, len(x))
    methods = x.new_zeros(len(x), dtype=torch.int8)
    batched_svd_into(x, "normal", values, left, right, bounds, checks, methods)
    bad = (methods < 0).nonzero()
    if len(bad):
        raise InputError(
            f"matrix {int(bad[0, 0])} of x has NaN or infinite values in a kept row; "
            "mask such rows out"
        )
    return left, torch.where(bounds[0] > 0, values, 0.0), right


def _keep_factors(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[1], output[0], output[2])
    ctx.dtype = inputs[0].dtype
    ctx.set_materialize_grads(False)


def _factors_backward(
    ctx: Any, grad_u: Tensor | None, grad: Tensor | None, grad_vh: Tensor | None
) -> tuple[Tensor | None, None]:
    """DX = U diag(dS) Vᵀ: the part of the gradient that the values carry (Giles 2008)."""
    if grad is None:
        return None, None
    mask, u, vh = ctx.saved_tensors
    dx = (u.double() * grad[:, None, :]) @ vh.double()
    return _kept(dx, mask).to(ctx.dtype), None


torch.library.register_autograd(
    "aniso::spectral_factors", _factors_backward, setup_context=_keep_factors
)


def _kept(t: Tensor, mask: Tensor | None) -> Tensor:
    return t if mask is None else torch.where(mask[:, :, None], t, 0)


torch.library.define(
    "aniso::spectral_map",
    "(Tensor x, Tensor? mask, Tensor u, Tensor s, Tensor vh, Tensor values, Tensor? slopes, "
    "Tensor? at_zero) -> Tensor",
)


@torch.library.impl("aniso::spectral_map", "CompositeExplicitAutograd")
def _map(
    x: Tensor,
    mask: Tensor | None,
    u: Tensor,
    s: Tensor,
    vh: Tensor,
    values: Tensor,
    slopes: Tensor | None,
    at_zero: Tensor | None,
) -> Tensor:
    """U diag(values) Vᵀ in the kept rows of x [b, m, n], the other rows of x as they are."""
    mapped = ((u.double() * values[:, None, :]) @ vh.double()).to(x.dtype)
    return mapped if mask is None else torch.where(mask[:, :, None], mapped, x)


@torch.library.register_fake("aniso::spectral_map")  # type: ignore[untyped-decorator]
def _map_fake(
    x: Tensor,
    mask: Tensor | None,
    u: Tensor,
    s: Tensor,
    vh: Tensor,
    values: Tensor,
    slopes: Tensor | None,
    at_zero: Tensor | None,
) -> Tensor:
    return x.new_empty(x.shape)


def _keep_map(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _map_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient in x with the values held, and the gradient diag(UᵀCV) in the values."""
    mask, u, s, vh, values, slopes, at_zero = ctx.saved_tensors
    u, vh = u.double(), vh.double()
    incoming = _kept(grad.double(), mask)
    wide = u.shape[1] <= vh.shape[2]
    half = u.mT @ incoming if wide else incoming @ vh.mT
    p = half @ vh.mT if wide else u.mT @ half
    dx = None
    if ctx.needs_input_grad[0]:
        inner = _inner(p, s, values, slopes, at_zero[:, None, None])
        stretch = ratio(values, s, at_zero[:, None])
        if wide:
            # I − UUᵀ = 0: what is left is U((Γ∘P − DP)Vᵀ + D UᵀC), D = diag(f/σ).
            across = stretch[:, :, None]
            dx = u @ ((inner - across * p) @ vh + across * half)
        else:
            along = stretch[:, None, :]
            dx = (u @ (inner - p * along) + half * along) @ vh
        dx = dx.to(grad.dtype)
        dx = dx if mask is None else torch.where(mask[:, :, None], dx, grad)
    dvalues = p.diagonal(dim1=1, dim2=2) if ctx.needs_input_grad[5] else None
    return dx, None, None, None, None, dvalues, None, None


def _inner(p: Tensor, s: Tensor, values: Tensor, slopes: Tensor, at_zero: Tensor) -> Tensor:
    """Γ⁻∘S + Γ⁺∘A off the diagonal; S and A are the symmetric and skew parts of P."""
    (s_i, s_j), (g_i, g_j) = pairs(s), pairs(values)
    plus = ratio(g_i + g_j, s_i + s_j, at_zero)
    inner = (slopes * (p + p.mT) + plus * (p - p.mT)) / 2
    same = torch.eye(s.shape[1], dtype=torch.bool, device=s.device)
    return torch.where(same, 0.0, inner)


torch.library.register_autograd("aniso::spectral_map", _map_backward, setup_context=_keep_map)


def _choose(x: Tensor) -> Backend:
    return select_backend("batched_svd", x)


register_chooser("spectral_map", _choose)
