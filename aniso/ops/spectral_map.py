"""U f(S) Vᵀ of batches of matrices, forward and backward, over the kept rows of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from aniso import _native
from aniso.errors import InputError
from aniso.ops import _spectral_map_torch as by_torch
from aniso.ops._arrays import as_tensor, check_matrices, restore_kind
from aniso.ops.backend import Backend, register_chooser, select_backend
from aniso.ops.batched_svd import FAILED, factor_dtype, require_finite_matrices

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Spectrum:
    """What a map does to the singular values s [b, k] of b matrices.

    Attributes:
        values: g_i, what replaces s_i, [b, k] float64; differentiable in parameters, not in s.
        derivative: ∂g_i/∂s_i, [b, k]; not read where s_i is 0. None when no gradient in x is
            asked for; so are the next three.
        curvature: ∂²g_i/∂s_i², [b, k]; counts between values that all but meet.
        at_zero: Slope of the map at zero, [b]; 0 where it is not continuous there.
        top: ∂g_i/∂s_1 that a factor K(s_1) adds to the derivative, [b, k]. None: no such factor.
        defined: Matrices that the map is defined for, [b] bool: the others come back unchanged.
            None: all.
    """

    values: Tensor
    derivative: Tensor | None = None
    curvature: Tensor | None = None
    at_zero: Tensor | None = None
    top: Tensor | None = None
    defined: Tensor | None = None


class SpectrumRule(Protocol):
    """Turns singular values [b, k] into the spectrum of a map."""

    def __call__(self, s: Tensor, *, slopes: bool) -> Spectrum:
        """The map's values at s, and its slopes when asked for."""


def without_zeros(s: Tensor, spectrum: Spectrum) -> Spectrum:
    """The spectrum of a map with f(0) ≠ 0: directions with s = 0 give nothing.

    X does not say which directions they are. What moves them meets the slope g_i/s_i against the
    directions that X has, and none among themselves.
    """
    at_zero = None if spectrum.derivative is None else s.new_zeros(len(s))
    return replace(spectrum, values=torch.where(s > 0, spectrum.values, 0.0), at_zero=at_zero)


def spectral_map(x: Any, f: Callable[[Tensor], Tensor], *, mask: Any = None) -> Any:
    """Replaces the singular values of every matrix: U f(S) Vᵀ, differentiable.

    Gradient by divided differences, with P = Uᵀ C V for the incoming C, its symmetric part S and
    its skew part A: dX = U(Γ⁻∘S + Γ⁺∘A)Vᵀ + U diag(f/σ)UᵀC(I − VVᵀ) + (I − UUᵀ)C V diag(f/σ)Vᵀ,
    Γ⁻_ij = (f_i − f_j)/(σ_i − σ_j), Γ⁺_ij = (f_i + f_j)/(σ_i + σ_j). Singular vectors are never
    differentiated: repeated, clustered and vanishing σ have finite gradients. Where two σ all but
    meet, Γ⁻ is the mean of f' between them, by the trapezoid with its correction by f''; unless
    f jumps there.

    Directions whose σ cannot be told from 0 (its certified lower bound is 0) are not determined by
    X: they give nothing, whatever f(0) is. Where f(0) = 0 with a finite f'(0), the gradient has
    them with slope f'(0); otherwise they take no part in it beyond f_i/σ_i of the others.

    Args:
        x: Matrices, shape [..., m, n], float64/float32/float16/bfloat16, finite in kept rows.
        f: New singular values from old ones, elementwise: float64 tensors of any shape, twice
            differentiable by torch. May have parameters, which get their gradients.
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
    slopes = (g.derivative, g.curvature, g.at_zero, g.top)
    mapped = torch.ops.aniso.spectral_map(matrices, keep, g.defined, u, s, vh, g.values, *slopes)
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
        given = torch.where(s > 0, s, 1.0)
        values = torch.where(s > 0, self._f(given), 0.0)
        if not slopes:
            return Spectrum(values)
        derivative, curvature = self._derivative(given), self._curvature(given)
        at_zero = self._at_zero(s).expand(len(s))
        return Spectrum(values, derivative.detach(), curvature.detach(), at_zero)

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

    def _curvature(self, s: Tensor) -> Tensor:
        curvature: Tensor = torch.func.grad(lambda t: self._derivative(t).sum())(s)
        return curvature

    def _at_zero(self, s: Tensor) -> Tensor:
        """f'(0), or 0 where f is not 0 or has no finite slope at 0."""
        zero = s.new_zeros(1)
        slope = self._derivative(zero).detach()
        continuous = (self._f(zero) == 0) & torch.isfinite(slope)
        return torch.where(continuous, slope, 0.0)


torch.library.define(
    "aniso::spectral_factors", "(Tensor x, Tensor? mask) -> (Tensor, Tensor, Tensor)"
)


@torch.library.impl("aniso::spectral_factors", "CompositeExplicitAutograd")
def _factors(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """U [b, m, k], S [b, k] float64 and Vh [b, k, n] of the kept rows, k = min(m, n).

    U is zero in rows that are not kept. S is 0 where it cannot be told from it. U or V spans all
    of its space, also where S is 0.
    """
    if x.numel() == 0:
        return _empty_factors(x)
    compiled = _kernel(x)
    if compiled is None:
        return by_torch.factors(x, mask)
    u, s, vh = factors = _empty_factors(x)
    methods = torch.empty(len(x), dtype=torch.int8)
    _native.spectral_factors_cpu(x.detach(), _flat(mask), factors, methods, **compiled)
    require_finite_matrices(methods, x.shape[:1], by_torch.ADVICE)
    for i in (methods == FAILED).nonzero()[:, 0].tolist():
        keep = slice(None) if mask is None else mask[i]
        left, values, right = by_torch.decompose_one(x[i, keep])
        k = len(values)
        u[i, keep, :k], s[i, :k], vh[i, :k] = left.to(u.dtype), values, right.to(vh.dtype)
    return factors


def _kernel(x: Tensor) -> dict[str, Any] | None:
    """How the compiled kernels run on matrices like x; None where torch has them."""
    name = _choose(x).name
    if not name.startswith("cpu-"):
        return None
    return {"threads": torch.get_num_threads(), "isa": name.removeprefix("cpu-")}


def _flat(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(-1)


def _empty_factors(x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    b, m, n = x.shape
    k = min(m, n)
    dtype = factor_dtype(x)
    u, vh = x.new_empty((b, m, k), dtype=dtype), x.new_empty((b, k, n), dtype=dtype)
    return u, x.new_empty((b, k), dtype=torch.float64), vh


torch.library.register_fake("aniso::spectral_factors")(_empty_factors)


def _ignore(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output)


def _no_gradient(ctx: Any, *_: Tensor) -> tuple[None, None]:
    return None, None


torch.library.register_autograd("aniso::spectral_factors", _no_gradient, setup_context=_ignore)

_SPECTRUM = (
    "Tensor? mask, Tensor? defined, Tensor u, Tensor s, Tensor vh, Tensor values, "
    "Tensor? derivative, Tensor? curvature, Tensor? at_zero, Tensor? top"
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
    compiled = _kernel(x)
    if x.numel() == 0 or compiled is None:
        return by_torch.mapped(x, mask, defined, u, vh, values)
    out, values = _like(x), values.detach().contiguous()
    factors = (u, s, vh)
    _native.spectral_map_cpu(x.detach(), _flat(mask), defined, factors, values, out, **compiled)
    return out


def _like(x: Tensor, *_: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


torch.library.register_fake("aniso::spectral_map")(_like)


@torch.library.impl("aniso::spectral_map_backward", "CompositeExplicitAutograd")
def _map_backward(
    grad: Tensor,
    mask: Tensor | None,
    defined: Tensor | None,
    u: Tensor,
    s: Tensor,
    vh: Tensor,
    values: Tensor,
    *slopes: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The gradients in x, empty without slopes, and in the values: diag(UᵀCV)."""
    compiled, factors = _kernel(grad), (u, s, vh)
    if grad.numel() == 0 or compiled is None:
        return by_torch.gradients(grad, mask, defined, factors, values, slopes)
    values = values.detach().contiguous()
    slopes = tuple(None if t is None else t.detach().contiguous() for t in slopes)
    dx, dvalues = _empty_gradients(grad, mask, defined, u, s, vh, values, *slopes)
    wanted = None if slopes[0] is None else dx
    arguments = (grad.detach(), _flat(mask), defined, factors, values, slopes, wanted, dvalues)
    _native.spectral_map_backward_cpu(*arguments, **compiled)
    return dx, dvalues


def _empty_gradients(
    grad: Tensor,
    mask: Tensor | None,
    defined: Tensor | None,
    u: Tensor,
    s: Tensor,
    vh: Tensor,
    values: Tensor,
    *slopes: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dx = grad.new_empty(0) if slopes[0] is None else grad.new_empty(grad.shape)
    return dx, values.new_empty(values.shape)


torch.library.register_fake("aniso::spectral_map_backward")(_empty_gradients)


def _keep_map(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dx, dvalues = torch.ops.aniso.spectral_map_backward(grad, *ctx.saved_tensors)
    wanted = ctx.needs_input_grad
    return (
        dx if wanted[0] else None,
        *[None] * 5,
        dvalues if wanted[6] else None,
        *[None] * 4,
    )


torch.library.register_autograd("aniso::spectral_map", _backward, setup_context=_keep_map)


def _keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    pass


def _refuse(ctx: Any, *_: Tensor) -> tuple[None, ...]:
    raise InputError(
        "spectral_map and soft_decay are differentiable once; "
        "a gradient of their gradient was asked for: leave it out of the loss"
    )


torch.library.register_autograd(
    "aniso::spectral_map_backward", _refuse, setup_context=_keep_nothing
)


def _choose(x: Tensor) -> Backend:
    return select_backend("batched_svd", x)


register_chooser("spectral_map", _choose)
