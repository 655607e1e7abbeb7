"""Which implementation of an op runs for a tensor, and why."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from aniso import _native
from aniso.errors import InputError
from aniso.ops._arrays import as_tensor

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import Tensor


@dataclass(frozen=True)
class Backend:
    """An implementation: its name ("cpu-avx512", "cuda", "triton", "torch") and the reason."""

    name: str
    reason: str


_CHOOSERS: dict[str, Callable[[Tensor], Backend]] = {}


def register_chooser(op: str, chooser: Callable[[Tensor], Backend]) -> None:
    """Tells `select_backend` how the op chooses; called once by the op's module."""
    _CHOOSERS[op] = chooser


def select_backend(op: str, x: Any) -> Backend:
    """The implementation that `op` would run for `x`, and why.

    Args:
        op: An op's name, such as "row_moments" or "gram".
        x: The array it would be called with.

    Raises:
        InputError: no such op, or no implementation for x's device.
    """
    if op not in _CHOOSERS:
        raise InputError(f"no op is called {op!r}; the ops are {', '.join(sorted(_CHOOSERS))}")
    return _CHOOSERS[op](as_tensor(x))


def compiled_backend(x: Tensor) -> Backend:
    """The choice of an op that has C++, CUDA and Triton kernels."""
    if x.device.type == "cpu":
        return Backend(f"cpu-{_native.isa}", "the widest instruction set of this processor")
    if x.device.type == "cuda":
        if _native.has_cuda:
            return Backend("cuda", "this build has CUDA kernels")
        if find_spec("triton") is not None:
            return Backend("triton", "this build has no CUDA kernels; Triton is installed")
        raise InputError(
            "x lies on a GPU, but this build has no CUDA kernels and Triton is missing; "
            "install triton, or rebuild with nvcc on PATH"
        )
    raise InputError(f"x lies on {x.device}; move it to a CPU or a CUDA device")


def product_backend(x: Tensor, products: str) -> Backend:
    """The choice for a tensor on a GPU of an op that has Triton kernels, or else torch's products.

    Args:
        x: The rows.
        products: What the kernels do, for the reason.

    Raises:
        InputError: x lies on no device that has an implementation.
    """
    if x.device.type != "cuda":
        raise InputError(f"x lies on {x.device}; move it to a CPU or a CUDA device")
    if find_spec("triton") is None:
        return Backend("torch", "matrix products of blocks; Triton is missing")
    return Backend("triton", products)


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """Makes x's GPU the current one, whose current stream Triton launches on."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
