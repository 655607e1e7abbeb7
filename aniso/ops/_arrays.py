"""Arrays of any kind at the border: in through DLPack, out as the kind that came in."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from aniso.errors import InputError
from aniso.ops._double import finite_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def as_tensor(x: Any, name: str = "x") -> Tensor:
    """The array as a torch tensor over the same memory, detached from autograd.

    Raises:
        InputError: no `__dlpack__`, or a dtype torch does not have.
    """
    if isinstance(x, torch.Tensor):
        return x.detach()
    if isinstance(x, np.ndarray):
        return _from_numpy(x, name)
    if not hasattr(x, "__dlpack__"):
        raise InputError(
            f"{name} is a {type(x).__name__}; pass an array with __dlpack__ "
            "(torch, NumPy, CuPy, JAX)"
        )
    return from_dlpack(x)


def _from_numpy(x: np.ndarray[Any, Any], name: str) -> Tensor:
    if x.dtype.kind not in "fbiu":
        raise InputError(f"{name} has dtype {x.dtype}; use float64, float32 or float16")
    if any(stride < 0 for stride in x.strides) or not x.dtype.isnative:
        x = np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        # Read-only arrays (memory maps) are only ever read here.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(x)


def restore_kind(x: Any) -> Callable[[Tensor], Any]:
    """The function that turns a result tensor into the kind of array `x` is."""
    if isinstance(x, torch.Tensor):
        return lambda t: t
    if isinstance(x, np.ndarray):
        return lambda t: t.numpy()
    namespace = x.__array_namespace__()
    return lambda t: namespace.from_dlpack(t)


def check_rows(x: Tensor, name: str = "x") -> Tensor:
    """`x` itself when it is rows [n, d] of a floating dtype.

    Raises:
        InputError: another number of dimensions, no columns, or another dtype.
    """
    if x.ndim != 2:
        raise InputError(f"{name} has shape {list(x.shape)}; rows are [n, d]: reshape it first")
    if x.shape[1] == 0:
        raise InputError(f"{name} has no columns (shape {list(x.shape)})")
    return _check_floating(x, name)


def check_matrices(x: Tensor, name: str = "x") -> Tensor:
    """`x` itself when it is matrices [..., m, n] of a floating dtype.

    Raises:
        InputError: fewer than two dimensions, or another dtype.
    """
    if x.ndim < 2:
        raise InputError(f"{name} has shape {list(x.shape)}; matrices are [..., m, n]")
    return _check_floating(x, name)


def _check_floating(x: Tensor, name: str) -> Tensor:
    if x.dtype not in DTYPES:
        raise InputError(
            f"{name} has dtype {str(x.dtype).removeprefix('torch.')}; "
            "use float64, float32, float16 or bfloat16"
        )
    return x


def unit_columns(x: Tensor) -> Tensor:
    """`x` with its columns side by side, as kernels read it; a copy when they are not."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def check_pairs(x: Any, y: Any, names: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor]:
    """Two arrays as rows [n, dx] and [n, dy] of floating dtypes on one device.

    Raises:
        InputError: one is not such rows (see `check_rows`), or they differ in rows or device.
    """
    a, b = (check_rows(as_tensor(t, name), name) for t, name in zip((x, y), names, strict=True))
    if len(a) != len(b):
        raise InputError(
            f"{names[0]} has {len(a)} rows, {names[1]} has {len(b)}; paired rows are equally many: "
            "row i of both must belong together"
        )
    if a.device != b.device:
        raise InputError(
            f"{names[0]} lies on {a.device}, {names[1]} on {b.device}; move them to one device"
        )
    return a, b


def check_mask(mask: Any, x: Tensor) -> Tensor | None:
    """The mask as a bool tensor [n] on x's device, or None.

    Raises:
        InputError: another dtype or length.
    """
    if mask is None:
        return None
    tensor = as_tensor(mask, "mask")
    if tensor.dtype != torch.bool or tensor.shape != x.shape[:1]:
        raise InputError(
            f"mask is {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}; "
            f"it must be bool [{x.shape[0]}], one value per row"
        )
    return tensor.to(x.device)


def first_nonfinite_row(x: Tensor, mask: Tensor | None = None) -> int | None:
    """Index of the first kept row with a NaN or an infinite value."""
    bad = ~torch.isfinite(x).all(dim=1)
    if mask is not None:
        bad &= mask
    index = bad.nonzero()
    return int(index[0]) if len(index) else None


def require_finite(x: Tensor, mask: Tensor | None, nonfinite: int, name: str = "x") -> None:
    """Raises InputError naming the first non-finite row when there is one."""
    if nonfinite:
        raise InputError(
            f"{name} has {nonfinite} rows with NaN or infinite values, the first is row "
            f"{first_nonfinite_row(x, mask)}; mask them out"
        )


def require_finite_pairs(
    x: Tensor, y: Tensor, mask: Tensor | None, names: tuple[str, str] = ("x", "y")
) -> None:
    """Raises InputError naming the first kept row of x, or else of y, that is not finite."""
    for rows, name in zip((x, y), names, strict=True):
        kept = len(rows) if mask is None else int(mask.sum())
        require_finite(rows, mask, kept - int(finite_rows(rows, mask).sum()), name)
