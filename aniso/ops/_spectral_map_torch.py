"""U f(S) Vᵀ and its gradient in operations of torch: on GPUs, and for the largest matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from aniso.ops.batched_svd import factor_dtype, factorized, require_finite_matrices

# See csrc/cpu/spectral_map_kernel.cpp.
_NEAR = 2.0**-12
_JUMP = 2.0**-24
_EPSILON = 2.0**-52
ADVICE = "mask rows that are not finite out"

Factors = tuple[Tensor, Tensor, Tensor]


def ratio(numerator: Tensor, denominator: Tensor, at_zero: Tensor | float) -> Tensor:
    """Numerator/denominator where the denominator is positive, elsewhere at_zero."""
    positive = denominator > 0
    return torch.where(positive, numerator / torch.where(positive, denominator, 1.0), at_zero)


def factors(x: Tensor, mask: Tensor | None) -> Factors:
    """U, S, Vh of the kept rows, as `aniso::spectral_factors` gives them."""
    if mask is None:
        return _decompose(x)
    (b, m, n), dtype = x.shape, factor_dtype(x)
    u, vh = x.new_zeros((b, m, min(m, n)), dtype=dtype), x.new_zeros((b, min(m, n), n), dtype=dtype)
    s = x.new_zeros((b, min(m, n)), dtype=torch.float64)
    # Packed to the front: left and right padding are one matrix.
    order = torch.argsort(~mask, dim=1, stable=True)
    order = order[:, : _packed_rows(x, mask), None]
    kept = mask[:, :, None].gather(1, order)
    packed = torch.where(kept, x.gather(1, order.expand(-1, -1, n)), 0)
    left, values, right = _decompose(packed)
    k = values.shape[1]
    u[:, :, :k].scatter_(1, order.expand(-1, -1, k), torch.where(kept, left, 0))
    s[:, :k], vh[:, :k] = values, right
    return u, s, vh


def _packed_rows(x: Tensor, mask: Tensor) -> int:
    """Rows of the longest matrix; n at least where V is to be complete."""
    longest = max(1, int(mask.sum(dim=1).max()))
    return longest if x.shape[1] <= x.shape[2] else max(longest, x.shape[2])


def _decompose(x: Tensor) -> Factors:
    out, left, right = factorized(x, min(x.shape[1:]), "normal")
    require_finite_matrices(out.methods, x.shape[:1], ADVICE)
    return left, torch.where(out.bounds[0] > 0, out.values, 0.0), right


def decompose_one(x: Tensor) -> Factors:
    """U, S, Vh of one matrix, float64; S is 0 where it is only rounding."""
    u, s, vh = torch.linalg.svd(x.double(), full_matrices=False)
    noise = _EPSILON * max(x.shape) * s.max(dim=-1, keepdim=True).values
    return u, torch.where(s > noise, s, 0.0), vh


def mapped(
    x: Tensor, mask: Tensor | None, defined: Tensor | None, u: Tensor, vh: Tensor, values: Tensor
) -> Tensor:
    """U diag(values) Vᵀ in the kept rows of x [b, m, n], the other rows of x as they are."""
    result = ((u * values[:, None, :].to(u.dtype)) @ vh).to(x.dtype)
    changed = _changed_rows(mask, defined)
    return result if changed is None else torch.where(changed, result, x)


def _changed_rows(mask: Tensor | None, defined: Tensor | None) -> Tensor | None:
    """Rows that the map changes, [b, m or 1, 1]; None when it changes all."""
    kept = None if mask is None else mask[:, :, None]
    if defined is None:
        return kept
    matrices = defined[:, None, None]
    return matrices if kept is None else kept & matrices


def gradients(
    grad: Tensor,
    mask: Tensor | None,
    defined: Tensor | None,
    factors: Factors,
    values: Tensor,
    slopes: tuple[Tensor | None, ...],
) -> tuple[Tensor, Tensor]:
    """The gradients in x, empty without slopes, and in the values: diag(UᵀCV)."""
    u, s, vh = factors
    derivative, curvature, at_zero, top = slopes
    changed = _changed_rows(mask, defined)
    c = (grad if changed is None else torch.where(changed, grad, 0)).to(u.dtype)
    wide = u.shape[1] <= vh.shape[2]
    p = u.mT @ (c @ vh.mT) if wide else (u.mT @ c) @ vh.mT
    dvalues = p.diagonal(dim1=1, dim2=2).double().clone()
    if derivative is None or curvature is None or at_zero is None:
        return grad.new_empty(0), dvalues
    stretch = ratio(values, s, at_zero[:, None])
    plus, minus = divided(s, values, derivative, curvature, at_zero)
    doubles = p.double()
    within = plus * doubles + (minus - plus) * (doubles + doubles.mT) / 2
    within = within - (stretch[:, :, None] if wide else stretch[:, None, :]) * doubles
    if top is not None and top.numel():
        within[:, 0, 0] += (top * dvalues).sum(dim=1)
    within = within.to(p.dtype)
    # dX = U(Γ∘P)Vᵀ + U D UᵀC(I − VVᵀ) + (I − UUᵀ)C V D Vᵀ, D = diag(f/σ); one of UUᵀ, VVᵀ is I.
    if wide:
        along = (u * stretch[:, None, :].to(u.dtype)) @ u.mT
        dx = torch.baddbmm(along @ c, u @ within, vh)
    else:
        along = vh.mT @ (stretch[:, :, None].to(u.dtype) * vh)
        dx = torch.baddbmm(c @ along, u, within @ vh)
    dx = dx.to(grad.dtype)
    return (dx if changed is None else torch.where(changed, dx, grad)), dvalues


def divided(
    s: Tensor, g: Tensor, derivative: Tensor, curvature: Tensor, at_zero: Tensor
) -> tuple[Tensor, Tensor]:
    """Γ⁺ and Γ⁻ of all pairs of values [b, k]: [b, k, k]. With s_j = 0, Γ⁻ = Γ⁺."""
    (s_i, s_j), (g_i, g_j) = _pairs(s), _pairs(g)
    (d_i, d_j), (c_i, c_j) = _pairs(derivative), _pairs(curvature)
    gap, rise = s_i - s_j, g_i - g_j
    plus = ratio(g_i + g_j, s_i + s_j, at_zero[:, None, None])
    smooth = (d_i + d_j) / 2 - gap * (c_i - c_j) / 12
    size = g_i.abs() + g_j.abs() + (s_i + s_j) * (d_i.abs() + d_j.abs())
    jumps = (rise - gap * smooth).abs() > _JUMP * size
    near = gap.abs() <= _NEAR * (s_i + s_j) / 2
    # Of two equal values that a jump parts, neither is determined.
    quotient = torch.where(gap != 0, rise / torch.where(gap != 0, gap, 1.0), 0.0)
    minus = torch.where(near & ~jumps, smooth, quotient)
    return plus, torch.where((s_i > 0) & (s_j > 0), minus, plus)


def _pairs(t: Tensor) -> tuple[Tensor, Tensor]:
    """t_i and t_j of all pairs of the last dimension, to be broadcast: [..., k, 1], [..., 1, k]."""
    return t[..., :, None], t[..., None, :]
