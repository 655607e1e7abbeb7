"""Matrices with the kinds of singular values that LAPACK tests its drivers with."""

from __future__ import annotations

import torch
from torch import Tensor


def _geometric(p: int) -> Tensor:
    return torch.logspace(0, -8, p, dtype=torch.float64)


def _arithmetic(p: int) -> Tensor:
    return torch.linspace(1, 1e-8, p, dtype=torch.float64)


def _clustered(p: int) -> Tensor:
    s = torch.ones(p, dtype=torch.float64)
    s[p // 2 :] = 1e-3
    return s * (1 - 1e-7 * torch.rand(p, dtype=torch.float64))


def _one_large(p: int) -> Tensor:
    s = torch.full((p,), 1e-8, dtype=torch.float64)
    s[0] = 1
    return s


def _one_small(p: int) -> Tensor:
    s = torch.ones(p, dtype=torch.float64)
    s[-1] = 1e-8
    return s


def _cliff(p: int) -> Tensor:
    s = torch.full((p,), 1.5e-6, dtype=torch.float64)
    s[:4] = 1
    return s


def _deficient(p: int) -> Tensor:
    s = torch.linspace(1, 0.1, p, dtype=torch.float64)
    s[(p + 1) // 2 :] = 0
    return s


def _repeated(p: int) -> Tensor:
    return torch.ones(p, dtype=torch.float64)


def _random(p: int) -> Tensor:
    return torch.exp(torch.log(torch.tensor(1e-8)) * torch.rand(p, dtype=torch.float64))


SPECTRA = {
    "geometric": _geometric,
    "arithmetic": _arithmetic,
    "clustered": _clustered,
    "one large": _one_large,
    "one small": _one_small,
    "cliff": _cliff,
    "rank-deficient": _deficient,
    "repeated": _repeated,
    "random": _random,
}
SCALES = {"denormal": 1e-41, "near overflow": 1e35}
KINDS = [*SPECTRA, *SCALES, "sink row", "duplicate rows", "zero", "integer"]


def _orthonormal(b: int, m: int, p: int) -> Tensor:
    return torch.linalg.qr(torch.randn(b, m, p, dtype=torch.float64))[0]


def matrices(kind: str, b: int, m: int, n: int) -> Tensor:
    """b matrices of a kind, float64; the caller rounds them to the dtype under test."""
    p = min(m, n)
    if kind in SPECTRA:
        s = torch.stack([SPECTRA[kind](p) for _ in range(b)])
        return (_orthonormal(b, m, p) * s[:, None, :]) @ _orthonormal(b, n, p).mT
    x = torch.randn(b, m, n, dtype=torch.float64)
    if kind in SCALES:
        return x * SCALES[kind]
    if kind == "sink row":
        x[:, 0] *= 1e4
    elif kind == "duplicate rows":
        x[:, m // 2 :] = x[:, :1]
    elif kind == "zero":
        x.zero_()
    else:
        x = x.round()
    return x
