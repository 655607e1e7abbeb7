"""svdvals, svd and the top of it against torch.linalg on the shapes of transformers' sequences.

The goals are geometric means over the four shapes: 10 for values, 6 for vectors, 12 for the top.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from registry import DEVICE, Case, side_by_side

import aniso

if TYPE_CHECKING:
    from collections.abc import Callable

_SHAPES = ((64, 128, 768), (256, 32, 384), (16, 512, 768), (8, 512, 4096))
_TOP = 16
# Of the H200's lines of the table; torch loops over them for seconds.
_H200_SHAPE, _H200_TOP = (256, 512, 768), (256, 128, 4096)
_CHECKED = 64
_DRIVERS = ("gesvd", "gesvdj", "gesvda")


def make(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Random matrices whose values fall by two orders of magnitude, as those of sequences do."""
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    x *= torch.logspace(0, -2, shape[2], dtype=torch.float64)
    return x.to(device, dtype)


def value_error(values: Any, x: torch.Tensor) -> float:
    """Largest |σ̂ - σ|/σ₁ of the first matrices against float64 LAPACK."""
    true = torch.linalg.svdvals(x[:_CHECKED].cpu().double())[..., : values.shape[-1]]
    return float(((values[:_CHECKED].cpu().double() - true).abs() / true[:, :1]).amax())


def factor_error(factors: Any, x: torch.Tensor) -> float:
    """Largest ‖A V - U S‖_F/‖A‖_F."""
    u, s, vh = (t.double() for t in factors)
    residual = torch.linalg.matrix_norm(x.double() @ vh.mT - u * s[:, None, :])
    return float((residual / torch.linalg.matrix_norm(x.double())).amax())


def torch_svd(x: torch.Tensor, driver: str | None = None) -> Any:
    """What one writes with torch; the top is cut from the whole."""
    return torch.linalg.svd(x, full_matrices=False, driver=driver)


def gram(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Gram matrices of the short side."""
    rows = x.to(dtype) if x.shape[1] <= x.shape[2] else x.to(dtype).mT
    return rows @ rows.mT


def gram_eigvalsh(x: torch.Tensor, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """What one writes for many small matrices: eigenvalues of Gram matrices."""
    return torch.linalg.eigvalsh(gram(x, dtype)).clamp(min=0).sqrt().flip(-1)


def gram_eigh(x: torch.Tensor, dtype: torch.dtype = torch.float64) -> Any:
    """The same with vectors, of the short side and from them of the long one."""
    values, short = torch.linalg.eigh(gram(x, dtype))
    rows = x.to(dtype) if x.shape[1] <= x.shape[2] else x.to(dtype).mT
    return short, values.clamp(min=0).sqrt(), short.mT @ rows


def cupy_svd(x: torch.Tensor, *, vectors: bool) -> Any:
    """CuPy's, where it is installed."""
    import cupy

    return cupy.linalg.svd(cupy.from_dlpack(x), full_matrices=False, compute_uv=vectors)


def gpu_peers(svd: Callable[..., Any], eigh: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """Each of torch's drivers, its batched eigenvalues in two precisions, and CuPy's."""
    peers: dict[str, Callable[..., Any]] = {
        f"{_NAMES[svd]} {driver}": partial(svd, driver=driver) for driver in _DRIVERS
    }
    for dtype in (torch.float64, torch.float32):
        name = str(dtype).removeprefix("torch.")
        peers[f"{name} Gram + torch {_NAMES[eigh]}"] = partial(eigh, dtype=dtype)
    if find_spec("cupy") is not None:
        peers["cupy.linalg.svd"] = partial(cupy_svd, vectors=svd is torch_svd)
    return peers


def value_peers() -> dict[str, Callable[[torch.Tensor], Any]]:
    """Torch's default; on a GPU all others too."""
    peers: dict[str, Callable[[torch.Tensor], Any]] = {"torch.linalg.svdvals": torch.linalg.svdvals}
    return peers if DEVICE == "cpu" else peers | gpu_peers(torch.linalg.svdvals, gram_eigvalsh)


def vector_peers() -> dict[str, Callable[[torch.Tensor], Any]]:
    """Torch's default; on a GPU all others too."""
    peers: dict[str, Callable[[torch.Tensor], Any]] = {"torch.linalg.svd": torch_svd}
    return peers if DEVICE == "cpu" else peers | gpu_peers(torch_svd, gram_eigh)


_NAMES = {
    torch.linalg.svdvals: "torch.linalg.svdvals",
    torch_svd: "torch.linalg.svd",
    gram_eigvalsh: "eigvalsh",
    gram_eigh: "eigh",
}


def values_case(
    shape: tuple[int, int, int], dtype: torch.dtype, goals: dict[str, float], rounds: int = 3
) -> Case:
    """Values alone."""
    name = str(dtype).removeprefix("torch.")
    return Case(
        op="batched_svd",
        shape=f"values {'x'.join(map(str, shape))} {name}",
        make=partial(make, shape, dtype),
        ours=aniso.svdvals,
        peers=value_peers(),
        error=value_error,
        tolerance=6e-8 if dtype == torch.float32 else 8e-15,
        goals=goals,
        rounds=rounds,
    )


def vectors_case(
    shape: tuple[int, int, int], k: int | None, goals: dict[str, float], rounds: int = 3
) -> Case:
    """Values and vectors, of all or of the k largest values, float32."""
    return Case(
        op="batched_svd",
        shape=f"{'vectors' if k is None else f'top {k}'} {'x'.join(map(str, shape))} float32",
        make=partial(make, shape, torch.float32),
        ours=partial(aniso.svd, k=k),
        peers=vector_peers(),
        error=factor_error,
        tolerance=1e-6,
        goals=goals,
        rounds=rounds,
    )


def h200_cases() -> list[Case]:
    """The lines of the H200's table."""
    if DEVICE == "cpu":
        return []
    values = {"torch.linalg.svdvals": 1000.0, "float64 Gram + torch eigvalsh": 7.0}
    return [
        values_case(_H200_SHAPE, torch.float32, values, rounds=1),
        vectors_case(_H200_SHAPE, None, {"float64 Gram + torch eigh": 3.0}, rounds=1),
        vectors_case(_H200_TOP, _TOP, {"float64 Gram + torch eigh": 20.0}, rounds=1),
    ]


test_batched_svd = side_by_side(
    *h200_cases(),
    *(values_case(s, torch.float32, {"torch.linalg.svdvals": 10.0}) for s in _SHAPES),
    *(vectors_case(s, None, {"torch.linalg.svd": 6.0}) for s in _SHAPES),
    *(vectors_case(s, _TOP, {"torch.linalg.svd": 12.0}) for s in _SHAPES),
    *(values_case(s, torch.float64, {"torch.linalg.svdvals": 1.0}) for s in _SHAPES),
)
