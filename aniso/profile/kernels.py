"""What a kernel declares in order to be profiled, and the register of those that did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

Shape = tuple[int, ...]
Inputs = tuple[Any, ...]

_KERNELS: dict[str, Kernel] = {}


def random_rows(shape: Shape, dtype: torch.dtype, device: str) -> Tensor:
    """Random rows with a common offset, so that sums and cosines are far from zero."""
    generator = torch.Generator(device).manual_seed(0)
    return (torch.randn(shape, generator=generator, device=device) + 0.3).to(dtype)


def relative_error(found: Any, exact: Any) -> float:
    """Largest |found − exact|/max |exact| over tensors, numbers, or tuples of them; NaN is ∞."""
    if isinstance(exact, tuple | list):
        return max(relative_error(f, e) for f, e in zip(found, exact, strict=True))
    found = torch.as_tensor(found).detach().to("cpu", torch.float64)
    exact = torch.as_tensor(exact).detach().to("cpu", torch.float64)
    if found.shape != exact.shape:
        return float("inf")
    if not exact.numel():
        return 0.0
    scale, worst = float(exact.abs().max()), float((found - exact).abs().max())
    error = worst / scale if scale else worst
    return error if error == error else float("inf")


@dataclass(frozen=True)
class Kernel:
    """A callable with what it costs and what it should return.

    Attributes:
        op: Its name in tables.
        run: The call that is measured.
        reference: The same in float64, on a CPU: obvious, slow, the truth.
        nbytes: Bytes that the call on these inputs must move at least.
        flops: Floating-point operations that it must do at least.
        shapes: Shapes that `make` is called with.
        dtypes: Dtypes, the same.
        tolerance: Largest error at which a speed is reported, for all dtypes or by dtype.
        make: Makes the inputs: a tensor, or a tuple of arguments.
        peer: What a user would call instead, in torch.
        error: Error of a result against the reference's.
        backends: The implementations for given inputs by name. Default: `run` alone.
    """

    op: str
    run: Callable[..., Any]
    reference: Callable[..., Any]
    nbytes: Callable[..., float]
    flops: Callable[..., float]
    shapes: tuple[Shape, ...]
    dtypes: tuple[torch.dtype, ...]
    tolerance: float | Mapping[torch.dtype, float]
    make: Callable[[Shape, torch.dtype, str], Any] = random_rows
    peer: Callable[..., Any] | None = None
    error: Callable[[Any, Any], float] = relative_error
    backends: Callable[..., dict[str, Callable[..., Any]]] | None = None

    def inputs(self, shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
        """The arguments of `run`."""
        made = self.make(shape, dtype, device)
        return made if isinstance(made, tuple) else (made,)

    def implementations(self, inputs: Inputs) -> dict[str, Callable[..., Any]]:
        """Backend name to callable for these inputs."""
        return {"user": self.run} if self.backends is None else self.backends(*inputs)

    def allowed(self, dtype: torch.dtype) -> float:
        """The tolerance of a dtype."""
        if isinstance(self.tolerance, Mapping):
            return self.tolerance[dtype]
        return self.tolerance


def kernel(
    op: str,
    *,
    reference: Callable[..., Any],
    nbytes: Callable[..., float],
    flops: Callable[..., float],
    shapes: Iterable[Shape],
    dtypes: Iterable[torch.dtype] = (torch.float32,),
    tolerance: float | Mapping[torch.dtype, float] = 1e-5,
    make: Callable[[Shape, torch.dtype, str], Any] = random_rows,
    peer: Callable[..., Any] | None = None,
    error: Callable[[Any, Any], float] = relative_error,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the decorated callable, so that `profile` measures it; it comes back unchanged.

    Args:
        op: Its name; a name that is taken is refused.
        reference: The same result in float64 from the same inputs, on a CPU.
        nbytes: Of the inputs: bytes the call must move at least.
        flops: Of the inputs: operations it must do at least.
        shapes: Shapes to measure.
        dtypes: Dtypes to measure.
        tolerance: Largest error, in units of the largest entry, at which a speed is reported.
        make: Makes the inputs on a device: a tensor, or a tuple of arguments.
        peer: What one would call instead in torch.
        error: Error of a result against the reference's.

    Raises:
        InputError: `op` is registered already, or there are no shapes or dtypes.

    Example:
        >>> @kernel("row_sum", reference=lambda x: x.double().sum(1), shapes=[(1000, 64)],
        ...         nbytes=lambda x: x.nbytes, flops=lambda x: x.numel())
        ... def row_sum(x):
        ...     return x.sum(1)
    """

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        if op in _KERNELS:
            raise InputError(f"a kernel is called {op!r} already; choose another name")
        entry = Kernel(
            op,
            run,
            reference,
            nbytes,
            flops,
            tuple(shapes),
            tuple(dtypes),
            tolerance,
            make,
            peer,
            error,
        )
        if not entry.shapes or not entry.dtypes:
            raise InputError(f"kernel {op!r} has no shapes or no dtypes; name at least one of each")
        _KERNELS[op] = entry
        return run

    return register


def registered_kernels() -> tuple[Kernel, ...]:
    """The kernels that `kernel` registered, in that order."""
    return tuple(_KERNELS.values())
