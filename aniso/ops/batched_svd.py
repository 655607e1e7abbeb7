"""Singular values and vectors of batches of matrices, each with a certificate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from aniso import _native
from aniso.errors import InputError
from aniso.ops._arrays import as_tensor, check_matrices, restore_kind
from aniso.ops.backend import Backend, register_chooser

if TYPE_CHECKING:
    from collections.abc import Callable

METHODS = ("gram", "gram, tail refined", "jacobi", "torch")
"""How a matrix was factorised, by the numbers that the op writes."""
ACCURACIES = ("normal", "high")
FAILED = METHODS.index("torch")
"""What a kernel writes where it does not converge: torch takes the matrix."""
_UNIT = 2.0**-53

torch.library.define(
    "aniso::batched_svd",
    "(Tensor x, str accuracy, Tensor(a!) values, Tensor(b!)? left, Tensor(c!)? right, "
    "Tensor(d!) bounds, Tensor(e!) checks, Tensor(f!) methods) -> ()",
)
batched_svd_into = torch.ops.aniso.batched_svd.default
"""Writes the k largest singular values, and vectors, of the matrices x [b, m, n].

values [b, k] float64, descending; left [b, m, k] and right [b, k, n], of x's dtype or, for half
precision, float32: both or neither. bounds [2, b, k] float64: below and above every value. checks
[2, b] float64: residual and orthogonality (see `Certificate`), NaN without vectors. methods [b]
int8: index into METHODS, or −1 where the matrix is not finite (its values are then NaN).

On a GPU every matrix has one thread block: its Gram matrix, those of its tails, or rotations.
"""


@torch.library.impl("aniso::batched_svd", "CompositeExplicitAutograd")
def _batched_svd(
    x: Tensor,
    accuracy: str,
    values: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    bounds: Tensor,
    checks: Tensor,
    methods: Tensor,
) -> None:
    backend, high = _choose(x), accuracy == "high"
    results = (values, left, right, bounds, checks, methods)
    if backend.name == "torch":
        _by_torch(x, *results)
        return
    if backend.name == "cuda":
        _by_cuda(x.detach(), *results, effort="high" if high else "gram")
        if not high and x.dtype != torch.float64:
            _repair(x, results, partial(_by_cuda, effort="refined"))
    else:
        threads, isa = torch.get_num_threads(), backend.name.removeprefix("cpu-")
        _native.batched_svd_cpu(x.detach(), *results, high=high, threads=threads, isa=isa)
    _repair(x, results, _by_torch)


@torch.library.register_fake("aniso::batched_svd")  # type: ignore[untyped-decorator]
def _batched_svd_fake(
    x: Tensor,
    accuracy: str,
    values: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    bounds: Tensor,
    checks: Tensor,
    methods: Tensor,
) -> None:
    torch._check(x.ndim == 3, lambda: "matrices are [b, m, n]")


def _by_cuda(x: Tensor, *results: Tensor | None, effort: str) -> None:
    with torch.cuda.device(x.device):
        size = _native.batched_svd_workspace_bytes(x, results, effort=effort)
        space = torch.empty(size, dtype=torch.uint8, device=x.device)
        stream = torch.cuda.current_stream(x.device).cuda_stream
        _native.batched_svd_cuda(x, results, effort=effort, workspace=space, stream=stream)


def _repair(x: Tensor, results: tuple[Tensor | None, ...], solver: Callable[..., None]) -> None:
    """Results of the matrices that the kernel left in doubt, all at once by another solver."""
    methods = results[-1]
    failed = (methods == FAILED).nonzero()[:, 0]  # type: ignore[union-attr]
    if not len(failed):
        return
    batch_axes = (0, 0, 0, 1, 1, 0)
    parts = [
        None if t is None else t.index_select(axis, failed)
        for t, axis in zip(results, batch_axes, strict=True)
    ]
    solver(x.detach().index_select(0, failed), *parts)
    for t, axis, part in zip(results, batch_axes, parts, strict=True):
        if t is not None and part is not None:
            t.index_copy_(axis, failed, part)


def _by_torch(
    x: Tensor,
    values: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    bounds: Tensor,
    checks: Tensor,
    methods: Tensor,
) -> None:
    k = values.shape[1]
    finite = torch.isfinite(x).all(dim=(1, 2))
    matrices = torch.where(finite[:, None, None], x, 0).to(torch.float64)
    largest = matrices.abs().amax(dim=(1, 2)) if x.numel() else matrices.new_zeros(len(x))
    scale = torch.exp2(torch.frexp(largest).exponent.double())
    scaled = matrices / scale[:, None, None]
    if left is None or right is None:
        sigma = torch.linalg.svdvals(scaled)[:, :k]
        checks.fill_(math.nan)
    else:
        u, sigma, vh = torch.linalg.svd(scaled, full_matrices=False)
        u, sigma, vh = u[:, :, :k], sigma[:, :k], vh[:, :k]
        flip = vh.gather(2, vh.abs().argmax(dim=2, keepdim=True)).sign()
        u, vh = u * flip.transpose(1, 2), vh * flip
        left.copy_(u)
        right.copy_(vh)
        checks.copy_(_measured(scaled, u, sigma, vh))
    # LAPACK's backward error, with a constant that no matrix was seen to reach.
    error = 8 * max(x.shape[1:]) * _UNIT * torch.linalg.matrix_norm(scaled)[:, None]
    nan = torch.where(finite, 1.0, math.nan)[:, None]
    values.copy_(sigma * scale[:, None] * nan)
    bounds[0] = (sigma - error).clamp(min=0) * scale[:, None] * nan
    bounds[1] = (sigma + error) * scale[:, None] * nan
    methods.copy_(torch.where(finite, FAILED, -1))


def _measured(x: Tensor, u: Tensor, sigma: Tensor, vh: Tensor) -> Tensor:
    residual = torch.linalg.matrix_norm(x @ vh.mT - u * sigma[:, None, :])
    norm = torch.linalg.matrix_norm(x)
    eye = torch.eye(sigma.shape[1], dtype=x.dtype, device=x.device)
    defects = [torch.linalg.matrix_norm(eye - q) for q in (u.mT @ u, vh @ vh.mT)]
    return torch.stack([residual / torch.where(norm == 0, 1, norm), torch.maximum(*defects)])


@dataclass(frozen=True)
class Certificate:
    """What is known about the errors of a factorisation; arrays of the kind that came in, float64.

    Attributes:
        residual: [...]. ‖A V − U S‖_F/‖A‖_F. With vectors only, else None.
        orthogonality: [...]. The larger of ‖UᵀU − I‖_F and ‖VᵀV − I‖_F. With vectors only.
        lower: [..., k]. No singular value lies below its bound ...
        upper: [..., k]. ... or above this one. Bounds of the values before they are rounded to
            the dtype of S, for the matrix as given. They count the rounding errors of every step,
            with the constants of probabilistic analysis (Higham & Mary 2019), some 24 √n u.
        how: What `method` says, or the numbers of the methods, [...] int8.
    """

    residual: Any
    orthogonality: Any
    lower: Any
    upper: Any
    how: Any

    @property
    def method(self) -> str:
        """How the values were computed: one sentence."""
        return self.how if isinstance(self.how, str) else _sentence(self.how)


class _Factors(NamedTuple):
    U: Any
    S: Any
    Vh: Any


class SVD(_Factors):
    """U [..., m, k], S [..., k] descending and Vh [..., k, n] with A = U diag(S) Vh.

    Unpacks into three, as torch.linalg.svd's result; `certificate` states the errors.
    """

    certificate: Certificate


def svdvals(
    x: Any, *, k: int | None = None, accuracy: str = "normal", certificate: bool = False
) -> Any:
    """Singular values of matrices, descending.

    S = √λ(A Aᵀ), the Gram matrix of the short side accumulated in float64 (products of float32
    values are exact in it), values too small for it from a second Gram matrix of what is left.
    float64 input takes one-sided Jacobi rotations instead.

    Args:
        x: Matrices, shape [..., m, n], float64/float32/float16/bfloat16; finite.
        k: How many of the largest; default all min(m, n).
        accuracy: "normal": |error| ≤ 2e-8·σ₁ before S is rounded to its dtype, 6e-8·σ₁ after it
            (float64 input: 35 ε·σ₁). "high": one-sided Jacobi rotations of the rows:
            small values to full relative accuracy where the rows of A or Aᵀ, scaled to one length,
            are well conditioned (Demmel & Veselić 1992).
        certificate: Return the `Certificate` too: a pair.

    Returns:
        [..., k], of x's dtype (float32 for half precision), an array of the kind of x.
        Differentiable in x (torch), also where values repeat.

    Raises:
        InputError: fewer than two dimensions, another dtype, a value that is not finite (the first
            such matrix is named), k not in 0..min(m, n), or an unknown accuracy.

    Time O(m n p + p³) per matrix with p = min(m, n), one thread per matrix. Equivalent to
    `torch.linalg.svdvals`.

    Example:
        >>> svdvals(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]))
        tensor([4., 3.])
    """
    rows = x if isinstance(x, Tensor) else as_tensor(x)
    count = count_of_values(rows, k, accuracy)
    values, bounds, methods = torch.ops.aniso.svdvals(_batch(rows), count, accuracy)
    shape, restore = rows.shape[:-2], restore_kind(x)
    require_finite_matrices(methods, shape)
    result = restore(values.reshape(*shape, count))
    if not certificate:
        return result
    lower, upper = (restore(bound.reshape(*shape, count)) for bound in bounds)
    return result, Certificate(None, None, lower, upper, methods)


def svd(x: Any, *, k: int | None = None, accuracy: str = "normal") -> SVD:
    """Singular value decomposition A = U diag(S) Vh, reduced, with a certificate.

    Signs are fixed: the entry of largest magnitude of each row of Vh is positive.

    Args:
        x: Matrices, shape [..., m, n], float64/float32/float16/bfloat16; finite.
        k: How many of the largest values; default all min(m, n).
        accuracy: As for `svdvals`.

    Returns:
        U [..., m, k], S [..., k], Vh [..., k, n], of x's dtype (float32 for half precision), arrays
        of the kind of x; `.certificate`.

    Raises:
        InputError: as `svdvals`.

    Time O(m n p + p³) per matrix with p = min(m, n). Equivalent to
    `torch.linalg.svd(full_matrices=False)`.

    Example:
        >>> u, s, vh = svd(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
        >>> s, vh[0]
        (tensor([2., 0.]), tensor([0., 1.]))
    """
    rows = as_tensor(x)
    count = count_of_values(rows, k, accuracy)
    out, left, right = factorized(_batch(rows), count, accuracy)
    shape = rows.shape[:-2]
    require_finite_matrices(out.methods, shape)
    restore = restore_kind(x)
    factors = (
        left.reshape(*shape, rows.shape[-2], count),
        out.values.to(left.dtype).reshape(*shape, count),
        right.reshape(*shape, count, rows.shape[-1]),
    )
    result = SVD(*map(restore, factors))
    result.certificate = out.certificate(shape, restore)
    return result


@dataclass(frozen=True)
class SvdOutputs:
    """What the op writes."""

    values: Tensor
    left: Tensor | None
    right: Tensor | None
    bounds: Tensor
    checks: Tensor
    methods: Tensor

    @classmethod
    def empty(
        cls, x: Tensor, k: int, left: Tensor | None = None, right: Tensor | None = None
    ) -> SvdOutputs:
        """Room for the k largest values of every matrix of x [b, m, n]."""
        doubles = x.new_empty(0, dtype=torch.float64)
        return cls(
            values=doubles.new_empty(len(x), k),
            left=left,
            right=right,
            bounds=doubles.new_empty(2, len(x), k),
            checks=doubles.new_full((2, len(x)), math.nan),
            methods=x.new_zeros(len(x), dtype=torch.int8),
        )

    def compute(self, x: Tensor, accuracy: str) -> None:
        """Runs the op."""
        if self.values.numel() == 0:
            return
        batched_svd_into(
            x,
            accuracy,
            self.values,
            self.left,
            self.right,
            self.bounds,
            self.checks,
            self.methods,
        )

    def certificate(self, shape: torch.Size, restore: Callable[[Tensor], Any]) -> Certificate:
        """What is known of them, in the shape and kind of the caller's array."""
        k = self.values.shape[1]
        lower, upper = (restore(bound.reshape(*shape, k)) for bound in self.bounds)
        residual, orthogonality = (restore(check.reshape(shape)) for check in self.checks)
        return Certificate(residual, orthogonality, lower, upper, self.methods)


def factorized(x: Tensor, k: int, accuracy: str) -> tuple[SvdOutputs, Tensor, Tensor]:
    """All that the op finds of matrices x [b, m, n], with left [b, m, k] and right [b, k, n]."""
    (b, m, n), dtype = x.shape, factor_dtype(x)
    left, right = x.new_empty((b, m, k), dtype=dtype), x.new_empty((b, k, n), dtype=dtype)
    out = SvdOutputs.empty(x, k, left, right)
    out.compute(x, accuracy)
    return out, left, right


def _sentence(methods: Tensor) -> str:
    counts = torch.bincount(methods.long(), minlength=len(METHODS)).tolist()
    used = [(name, count) for name, count in zip(METHODS, counts, strict=True) if count]
    if len(used) == 1:
        return used[0][0]
    return "; ".join(f"{name}: {count} matrices" for name, count in used)


def count_of_values(x: Tensor, k: int | None, accuracy: str = "normal") -> int:
    """How many singular values of matrices [..., m, n] are asked for; default all.

    Raises:
        InputError: fewer than two dimensions, another dtype, an unknown accuracy, or k not in
            0..min(m, n).
    """
    check_matrices(x)
    if accuracy not in ACCURACIES:
        raise InputError(f"accuracy is {accuracy!r}; use {' or '.join(map(repr, ACCURACIES))}")
    short = min(x.shape[-2:])
    if k is None:
        return short
    if not 0 <= k <= short:
        raise InputError(f"k is {k}; matrices {list(x.shape[-2:])} have {short} singular values")
    return k


def _batch(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def factor_dtype(x: Tensor) -> torch.dtype:
    """The dtype of factors of x: its own, float32 for half precision."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def require_finite_matrices(
    methods: Tensor, shape: torch.Size, advice: str = "replace or leave them out"
) -> None:
    """Raises InputError naming the first of the matrices x [*shape, m, n] that is not finite."""
    if torch.compiler.is_compiling():
        return
    bad = (methods < 0).nonzero()
    if len(bad):
        index = [int(i) for i in torch.unravel_index(bad[0, 0], shape)] if shape else []
        where = f"matrix {index} of x" if shape else "x"
        raise InputError(f"{where} has NaN or infinite values; {advice}")


torch.library.define(
    "aniso::svdvals", "(Tensor x, int k, str accuracy) -> (Tensor, Tensor, Tensor)"
)


@torch.library.impl("aniso::svdvals", "CompositeExplicitAutograd")
def _svdvals(x: Tensor, k: int, accuracy: str) -> tuple[Tensor, Tensor, Tensor]:
    out = SvdOutputs.empty(x, k)
    out.compute(x, accuracy)
    return out.values.to(factor_dtype(x)), out.bounds, out.methods


@torch.library.register_fake("aniso::svdvals")  # type: ignore[untyped-decorator]
def _svdvals_fake(x: Tensor, k: int, accuracy: str) -> tuple[Tensor, Tensor, Tensor]:
    out = SvdOutputs.empty(x, k)
    return out.values.to(factor_dtype(x)), out.bounds, out.methods


def _keep_matrix(ctx: Any, inputs: tuple[Tensor, int, str], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.accuracy = inputs[2]


def _svdvals_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
    """The gradient in A: U diag(dS) Vᵀ (Giles 2008)."""
    (x,) = ctx.saved_tensors
    left, right = factorized(x, grad.shape[1], ctx.accuracy)[1:]
    return ((left * grad[:, None, :]) @ right).to(x.dtype), None, None


torch.library.register_autograd("aniso::svdvals", _svdvals_backward, setup_context=_keep_matrix)


def _choose(x: Tensor) -> Backend:
    m, n = x.shape[-2:] if x.ndim > 1 else (0, 0)
    on_gpu = x.device.type == "cuda" and _native.has_cuda
    if x.device.type != "cpu" and not on_gpu:
        return Backend("torch", f"no kernel for {x.device.type}: torch.linalg in float64")
    side, size = _native.batched_svd_max_side, _native.batched_svd_max_size
    if on_gpu:
        with torch.cuda.device(x.device):
            side = _native.batched_svd_cuda_max_side()
        size = _native.batched_svd_cuda_max_size
    if min(m, n) > side or m * n > size:
        reason = f"[{m}, {n}] is beyond {side} on its short side or {size} entries"
        return Backend("torch", f"{reason}: torch.linalg in float64")
    if on_gpu:
        return Backend(
            "cuda", "Gram matrices and rotations in float64, one thread block per matrix"
        )
    return Backend(f"cpu-{_native.isa}", "float64 Gram matrices, one thread per matrix")


register_chooser("batched_svd", _choose)
