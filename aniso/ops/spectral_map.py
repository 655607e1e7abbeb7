"""U f(S) Vᵀ of batches of matrices, forward and backward, over the kept rows of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from aniso import _native
from aniso.errors import InputError
from aniso.ops._arrays import as_tensor, check_matrices, restore_kind
from aniso.ops.backend import Backend, register_chooser, select_backend
from aniso.ops.batched_svd import factor_dtype, factorized

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
        values: g_i, what replaces s_i, [b, k] float64; differentiable in parameters, not in s.
        slopes: Γ⁻_ij = (g_i − g_j)/(s_i − s_j), its limit ∂g_i/∂s_i where s_i = s_j, [b, k, k];
            not read where s_i or s_j is 0. None when no gradient in x is asked for; so
            are the next two.
        at_zero: Slope of the map at zero, [b]; 0 where it is not continuous there.
        top: ∂g_i/∂s_1 that a factor K(s_1) adds to the slopes, [b, k]. None: no such factor.
        defined: Matrices that the map is defined for, [b] bool: the others come back unchanged.
            None: all.
    """

    values: Tensor
    slopes: Tensor | None = None
    at_zero: Tensor | None = None
    top: Tensor | None = None
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
    at_zero = None if slopes is None else s.new_zeros(len(s))
    return Spectrum(torch.where(s > 0, values, 0.0), slopes, at_zero)


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

    Time O(m n p + p³) per matrix with p = min(m, n); factors and products with them in float32
    (float64 for float64 input), singular values and everything of them in float64. Equivalent to
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
    u, s, vh = torch.ops.aniso.spectral_factors(matrices.detach(), keep)
    g = rule(s, slopes=torch.is_grad_enabled() and rows.requires_grad)
    mapped = torch.ops.aniso.spectral_map(
        matrices, keep, g.defined, u, s, vh, g.values, g.slopes, g.at_zero, g.top
    )
    singular = s.reshape(*rows.shape[:-2], s.shape[1])
    return restore_kind(x)(mapped.reshape(rows.shape)), singular


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
        return Spectrum(values, self._divided_differences(given), at_zero.expand(len(s)))

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
    if mask is None and x.numel():
        return _decompose(x)
    u, s, vh = _empty_factors(x)
    if mask is None or x.numel() == 0:
        return u, s, vh
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
    dtype = factor_dtype(x)
    u = x.new_zeros((b, m, k), dtype=dtype)
    return u, x.new_zeros((b, k), dtype=torch.float64), x.new_zeros((b, k, n), dtype=dtype)


def _packed_rows(x: Tensor, mask: Tensor) -> int:
    """Rows of the longest matrix; n at least where V is to be complete."""
    longest = max(1, int(mask.sum(dim=1).max()))
    return longest if x.shape[1] <= x.shape[2] else max(longest, x.shape[2])


def _decompose(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    out, left, right = factorized(x, min(x.shape[1:]), "normal")
    bad = (out.methods < 0).nonzero()
    if len(bad):
        raise InputError(
            f"matrix {int(bad[0, 0])} of x has NaN or infinite values in a kept row; "
            "mask such rows out"
        )
    return left, torch.where(out.bounds[0] > 0, out.values, 0.0), right


def _ignore(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output)


def _no_gradient(ctx: Any, *_: Tensor) -> tuple[None, None]:
    return None, None


torch.library.register_autograd("aniso::spectral_factors", _no_gradient, setup_context=_ignore)

_SPECTRUM = (
    "Tensor? mask, Tensor? defined, Tensor u, Tensor s, Tensor vh, Tensor values, Tensor? slopes, "
    "Tensor? at_zero, Tensor? top"
)
torch.library.define("aniso::spectral_map", f"(Tensor x, {_SPECTRUM}) -> Tensor")
torch.library.define(
    "aniso::spectral_map_backward", f"(Tensor grad, {_SPECTRUM}) -> (Tensor, Tensor)"
)


@torch.library.impl("aniso::spectral_map", "CompositeExplicitAutograd")
def _map(
    x: Tensor,
    mask: Tensor | None,
    defined: Tensor | None,
    u: Tensor,
    s: Tensor,
    vh: Tensor,
    values: Tensor,
    *_: Tensor | None,
) -> Tensor:
    """U diag(values) Vᵀ in the kept rows of x [b, m, n], the other rows of x as they are."""
    mapped = ((u * values[:, None, :].to(u.dtype)) @ vh).to(x.dtype)
    changed = _changed_rows(mask, defined)
    return mapped if changed is None else torch.where(changed, mapped, x)


@torch.library.register_fake("aniso::spectral_map")  # type: ignore[untyped-decorator]
def _map_fake(x: Tensor, *_: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


def _changed_rows(mask: Tensor | None, defined: Tensor | None) -> Tensor | None:
    """Rows that the map changes, [b, m or 1, 1]; None when it changes all."""
    kept = None if mask is None else mask[:, :, None]
    if defined is None or bool(defined.all()):
        return kept
    matrices = defined[:, None, None]
    return matrices if kept is None else kept & matrices


@torch.library.impl("aniso::spectral_map_backward", "CompositeExplicitAutograd")
def _map_backward(
    grad: Tensor,
    mask: Tensor | None,
    defined: Tensor | None,
    u: Tensor,
    s: Tensor,
    vh: Tensor,
    values: Tensor,
    slopes: Tensor | None,
    at_zero: Tensor | None,
    top: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The gradients in x, empty without slopes, and in the values: diag(UᵀCV)."""
    changed = _changed_rows(mask, defined)
    c = (grad if changed is None else torch.where(changed, grad, 0)).to(u.dtype)
    wide = u.shape[1] <= vh.shape[2]
    p = (u.mT @ (c @ vh.mT) if wide else (u.mT @ c) @ vh.mT).to(u.dtype)
    dvalues = p.diagonal(dim1=1, dim2=2).double().clone()
    if slopes is None or at_zero is None:
        return grad.new_empty(0), dvalues
    stretch = ratio(values, s, at_zero[:, None])
    within = _within(p, s, values, slopes, at_zero, stretch, wide)
    if top is not None and top.numel():
        within[:, 0, 0] += (top * dvalues).sum(dim=1).to(within.dtype)
    # dX = U(Γ∘P)Vᵀ + U D UᵀC(I − VVᵀ) + (I − UUᵀ)C V D Vᵀ, D = diag(f/σ); one of UUᵀ, VVᵀ is I.
    if wide:
        along = (u * stretch[:, None, :].to(u.dtype)) @ u.mT
        dx = torch.baddbmm(along @ c, u @ within, vh)
    else:
        along = vh.mT @ (stretch[:, :, None].to(u.dtype) * vh)
        dx = torch.baddbmm(c @ along, u, within @ vh)
    dx = dx.to(grad.dtype)
    return (dx if changed is None else torch.where(changed, dx, grad)), dvalues


@torch.library.register_fake("aniso::spectral_map_backward")  # type: ignore[untyped-decorator]
def _map_backward_fake(
    grad: Tensor,
    mask: Tensor | None,
    defined: Tensor | None,
    u: Tensor,
    s: Tensor,
    vh: Tensor,
    values: Tensor,
    slopes: Tensor | None,
    *_: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dx = grad.new_empty(0) if slopes is None else grad.new_empty(grad.shape)
    return dx, values.new_empty(values.shape)


def _within(
    p: Tensor,
    s: Tensor,
    values: Tensor,
    slopes: Tensor,
    at_zero: Tensor,
    stretch: Tensor,
    wide: bool,
) -> Tensor:
    """Γ⁻∘S + Γ⁺∘A − D P (or P D), like p; S and A are the symmetric and skew parts of P.

    With s_j = 0, Γ⁻ = Γ⁺. In float64 until it is stored.
    """
    if p.device.type == "cpu" and p.numel():
        out, threads = torch.empty_like(p), torch.get_num_threads()
        given = (t.detach().contiguous() for t in (p, s, values, slopes, at_zero, stretch))
        p, s, values, slopes, at_zero, stretch = given
        arguments = (p, s, values, slopes, at_zero, stretch, wide, out)
        _native.spectral_inner_cpu(*arguments, threads=threads, isa=_native.isa)
        return out
    (s_i, s_j), (g_i, g_j), doubles = pairs(s), pairs(values), p.double()
    plus = ratio(g_i + g_j, s_i + s_j, at_zero[:, None, None])
    minus = torch.where((s_i > 0) & (s_j > 0), slopes, plus)
    inner = plus * doubles + (minus - plus) * (doubles + doubles.mT) / 2
    return (inner - (stretch[:, :, None] if wide else stretch[:, None, :]) * doubles).to(p.dtype)


def _keep_map(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dx, dvalues = torch.ops.aniso.spectral_map_backward(grad, *ctx.saved_tensors)
    wanted = ctx.needs_input_grad
    return (
        dx if wanted[0] else None,
        *[None] * 5,
        dvalues if wanted[6] else None,
        *[None] * 3,
    )


torch.library.register_autograd("aniso::spectral_map", _backward, setup_context=_keep_map)


def _choose(x: Tensor) -> Backend:
    return select_backend("batched_svd", x)


register_chooser("spectral_map", _choose)
