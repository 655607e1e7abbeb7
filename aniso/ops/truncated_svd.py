"""The largest singular values and vectors of matrices of any size, with a certificate."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from aniso.errors import InputError
from aniso.moments import Grams
from aniso.ops._arrays import as_tensor, first_nonfinite_row, restore_kind
from aniso.ops._eigen import descending_eigh, eigh_error
from aniso.ops._subspace import UNIT, Remainder, ScaledMatrix, Triplets, orthonormal, ritz
from aniso.ops.backend import Backend, register_chooser
from aniso.ops.batched_svd import Certificate, count_of_values, factor_dtype, svd
from aniso.ops.gram import gram_into

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

METHODS = ("auto", "gram", "krylov")
# Up to here the exact Gram matrix is one pass and d³ is small beside it.
_SHORT = 1024
# A matrix this long is worth all threads; a shorter one goes to the batched kernel.
_LONG = 4096
_GRAM_ROWS = 1 << 14
_OVERSAMPLED, _DEPTH, _CYCLES = 8, 4, 50
# Below it, residuals are the rounding of float32 products.
_SINGLE = 5e-7


class TruncatedSVD(NamedTuple):
    """U [..., m, k], S [..., k] descending, Vh [..., k, n] and what is known of their errors."""

    U: Any
    S: Any
    Vh: Any
    certificate: Certificate


def truncated_svd(
    x: Any, k: int, *, method: str = "auto", tol: float | None = None, seed: int = 0
) -> TruncatedSVD:
    """The k largest singular triplets of matrices, with two-sided bounds of every value.

    "gram" is exact: the eigenvectors V of the Gram matrix of the short side, accumulated in
    float64 in one pass, then U and S from A V in a second. "krylov" projects A on a randomised
    block Krylov space, started anew from its Ritz vectors until ‖A V − U S‖_F ≤ tol·‖A‖_F. "auto"
    takes "gram" up to 1024 columns or rows and where k is no small part of them, else "krylov".
    Signs are fixed: the entry of largest magnitude of each row of Vh is positive.

    Args:
        x: Matrices, shape [..., m, n], float64/float32/float16/bfloat16, CPU or CUDA; finite.
            Batches, and matrices with both sides below 4096, go through `svd` instead of "gram".
        k: How many of the largest values.
        method: "auto", "gram" or "krylov".
        tol: Residual at which "krylov" stops; default 1e-6, and 1e-10 for float64.
        seed: Of the start of "krylov": one seed, one result.

    Returns:
        U [..., m, k], S [..., k], Vh [..., k, n], of x's dtype (float32 for half precision), and
        the certificate of these factors before they are rounded to it; arrays of the kind of x.

    Raises:
        InputError: fewer than two dimensions, another dtype, a value that is not finite, k not in
            0..min(m, n), an unknown method, or tol not positive.

    "krylov" warns (RuntimeWarning) where it could not reach tol; the bounds hold all the same. Its
    upper bounds are close where σ_i² exceeds what the subspace leaves of ‖A‖_F², else wide.
    Time O(m n p + p³) with p = min(m, n) for "gram", O(m n k) per product for "krylov".
    Equivalent to the leading part of `torch.linalg.svd`.
    Reference: Musco & Musco, "Randomized Block Krylov Methods for Stronger and Faster Approximate
    Singular Value Decomposition", NeurIPS 2015; Fukaya et al., "CholeskyQR2", ScalA 2014.

    Example:
        >>> truncated_svd(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2).S
        tensor([3., 2.])
    """
    matrix = as_tensor(x)
    count_of_values(matrix, k)
    chosen = _chosen(matrix, k, _checked(method, tol))
    if chosen.name == "krylov":
        result = _stacked(matrix, k, tol, seed)
    elif chosen.name == "gram":
        result = _finished(matrix, _by_gram(matrix, k))
    else:
        factors = svd(matrix, k=k)
        result = TruncatedSVD(factors.U, factors.S, factors.Vh, factors.certificate)
    restore, known = restore_kind(x), result.certificate
    how = f"{chosen.name}: {chosen.reason}" + (f" ({known.method})" if known.method else "")
    return TruncatedSVD(
        restore(result.U),
        restore(result.S),
        restore(result.Vh),
        Certificate(
            residual=restore(known.residual),
            orthogonality=restore(known.orthogonality),
            lower=restore(known.lower),
            upper=restore(known.upper),
            how=how,
        ),
    )


def _checked(method: str, tol: float | None) -> str:
    if method not in METHODS:
        raise InputError(f"method is {method!r}; use {', '.join(map(repr, METHODS))}")
    if tol is not None and not tol > 0:
        raise InputError(f"tol is {tol}; it is a share of the norm of x, more than 0")
    return method


def _chosen(x: Tensor, k: int | None, method: str = "auto") -> Backend:
    m, n = x.shape[-2:]
    short, which = min(m, n), f"{m} x {n}" + ("" if k is None else f", k = {k}")
    asked = "as asked" if method != "auto" else ""
    if k == 0 or x.numel() == 0:
        return Backend("batched_svd", f"{which}: nothing to compute")
    few = k is None or 8 * k <= short
    if method == "krylov" or (method == "auto" and x.ndim == 2 and short > _SHORT and few):
        return Backend("krylov", f"{which}: {asked or f'short side above {_SHORT}, k small'}")
    if x.ndim > 2:
        return Backend("batched_svd", f"{which}: {asked or 'matrices side by side'}")
    if max(m, n) < _LONG:
        return Backend("batched_svd", f"{which}: {asked or f'long side below {_LONG}'}")
    why = f"short side up to {_SHORT}" if short <= _SHORT else "k no small part of the short side"
    return Backend("gram", f"{which}: {asked or why}")


@dataclass(frozen=True)
class _Found:
    """Triplets of A·s, s undone by `scale`, with their errors."""

    triplets: Triplets
    residual: float
    bounds: Tensor
    scale: float
    how: str = ""


def _finished(x: Tensor, found: _Found) -> TruncatedSVD:
    triplets, dtype = found.triplets, factor_dtype(x)
    right = triplets.right.T
    flip = right.gather(1, right.abs().argmax(dim=1, keepdim=True)).sign()
    lower, upper = found.bounds / found.scale
    known = Certificate(
        lower.new_tensor(found.residual),
        lower.new_tensor(triplets.defect),
        lower,
        upper,
        found.how,
    )
    left = (triplets.left * flip.T).to(dtype)
    values = (triplets.values / found.scale).to(dtype)
    return TruncatedSVD(left, values, (right * flip).to(dtype).contiguous(), known)


def _require_finite(x: Tensor, finite: bool) -> None:
    if not finite:
        raise InputError(
            f"row {first_nonfinite_row(x)} of x has NaN or infinite values; replace them or leave "
            "the row out"
        )


def _by_gram(x: Tensor, k: int) -> _Found:
    if x.shape[0] < x.shape[1]:
        found = _by_gram_of_rows(x.T, k, x)
        return replace(found, triplets=found.triplets.transposed)
    return _by_gram_of_rows(x, k, x)


def _by_gram_of_rows(rows: Tensor, k: int, x: Tensor) -> _Found:
    # Squares of the other dtypes cannot leave the range of float64.
    a = ScaledMatrix.of(rows) if x.dtype == torch.float64 else ScaledMatrix(rows)
    _require_finite(x, math.isfinite(a.scale))
    gram, error = _gram_of(a)
    values, vectors = descending_eigh(gram)
    image = a.times(vectors[:, :k])
    _require_finite(x, math.isfinite(float(image.sum())))
    found, miss = ritz(image, vectors[:, :k])
    away = torch.linalg.matrix_norm(gram @ found.right - found.right * found.values**2)
    energy = float(gram.trace()) + error
    coupling = float(away) + error + len(gram) * UNIT * math.sqrt(k) * energy
    beyond = (float(values[k]) if k < len(values) else 0.0) + error + eigh_error(gram)
    remainder = Remainder.measured(energy, found.values, k, coupling, max(beyond, 0.0))
    bounds = remainder.bounds(found, rows.shape[1])
    return _Found(found, miss / math.sqrt(energy or 1.0), bounds, a.scale)


def _gram_of(a: ScaledMatrix) -> tuple[Tensor, float]:
    """The Gram matrix of the columns of A·s [n, d], and a bound of its error in any norm."""
    rows, sums = a.a, Grams.zeros(a.a.shape[1], a.a.device)
    ready = a.scale == 1.0 and rows.stride(1) == 1
    step = len(rows) if ready else _GRAM_ROWS
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        if not ready:
            block = (block if a.scale == 1.0 else block * a.scale).contiguous()
        gram_into(block, None, sums.pilot, sums.raw, None, sums.totals, sums.noise)
    energy = float(sums.raw.trace())
    # No rounding to fixed point exceeds √3 of what is expected of it.
    noise = 2 * math.sqrt(float(sums.noise[0]))
    # As many roundings as a block has rows, and one more per block.
    blocks = len(a.blocks())
    summed = (len(rows) / blocks + blocks) * UNIT * energy
    return sums.raw, summed + noise * (2 * math.sqrt(energy) + noise)


def _by_krylov(x: Tensor, k: int, tol: float | None, seed: int) -> _Found:
    if tol is None:
        tol = 1e-10 if x.dtype == torch.float64 else 1e-6
    a = ScaledMatrix.of(x)
    _require_finite(x, math.isfinite(a.scale))
    width = min(k + _OVERSAMPLED, min(x.shape))
    depth = min(_DEPTH, min(x.shape) // width - 1)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(x.shape[1], width, generator=generator, dtype=torch.float64).to(x.device)
    coarse = tol >= _SINGLE and x.dtype != torch.float64
    dtype, energy = torch.float32 if coarse else torch.float64, a.energy()
    for cycles in range(1, _CYCLES + 1):
        basis = _krylov_basis(a, start, depth, dtype)
        found, miss = ritz(a.transposed.times(basis), basis)
        start = found.left[:, :width]
        result = _krylov_result(a, found.transposed, k, energy, miss)
        how = f"{cycles} cycles of {depth + 1} blocks of {width}, tol {tol:.1e}"
        if result.residual <= tol:
            break
    else:
        warnings.warn(
            f"truncated_svd is at residual {result.residual:.1e} after {how}; raise tol, or use "
            "method='gram'",
            RuntimeWarning,
            stacklevel=4,
        )
    return replace(result, how=how)


def _krylov_basis(a: ScaledMatrix, start: Tensor, depth: int, dtype: torch.dtype) -> Tensor:
    """An orthonormal basis [m, (depth + 1) width] of A X, (A Aᵀ) A X, … for X = start."""
    blocks = [orthonormal(a.times(start, dtype))]
    for _ in range(depth):
        block = a.times(orthonormal(a.transposed.times(blocks[-1], dtype)), dtype)
        known = torch.cat(blocks, dim=1)
        # Once leaves what rounding puts back; twice is enough.
        for _ in range(2):
            block = orthonormal(block - known @ (known.T @ block))
        blocks.append(block)
    return orthonormal(torch.cat(blocks, dim=1))


def _krylov_result(a: ScaledMatrix, found: Triplets, k: int, energy: float, miss: float) -> _Found:
    kept = found.first(k)
    away = a.times(kept.right) - kept.left * kept.values
    rounding = sum(a.a.shape) * UNIT * math.sqrt(k) * energy + miss * math.sqrt(energy)
    coupling = float(torch.linalg.matrix_norm(away * kept.values)) + rounding
    remainder = Remainder.measured(energy, found.values, k, coupling)
    bounds = remainder.bounds(kept, max(a.a.shape))
    residual = float(torch.linalg.matrix_norm(away)) / math.sqrt(energy or 1.0)
    return _Found(kept, residual, bounds, a.scale)


def _stacked(x: Tensor, k: int, tol: float | None, seed: int) -> TruncatedSVD:
    """Block Krylov of every matrix of a batch."""
    matrices = x.reshape(-1, *x.shape[-2:])
    each = [_finished(matrix, _by_krylov(matrix, k, tol, seed)) for matrix in matrices]

    def together(part: Callable[[TruncatedSVD], Tensor]) -> Tensor:
        parts = [part(one) for one in each]
        return torch.stack(parts).reshape(x.shape[:-2] + parts[0].shape)

    known = Certificate(
        residual=together(lambda one: one.certificate.residual),
        orthogonality=together(lambda one: one.certificate.orthogonality),
        lower=together(lambda one: one.certificate.lower),
        upper=together(lambda one: one.certificate.upper),
        how="; ".join(dict.fromkeys(one.certificate.method for one in each)),
    )
    return TruncatedSVD(
        together(lambda one: one.U),
        together(lambda one: one.S),
        together(lambda one: one.Vh),
        known,
    )


def _choose(x: Tensor) -> Backend:
    if x.ndim < 2:
        raise InputError(f"x has shape {list(x.shape)}; matrices are [..., m, n]")
    return _chosen(x, None)


register_chooser("truncated_svd", _choose)
