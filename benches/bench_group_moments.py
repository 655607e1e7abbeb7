"""group_cosine against torch normalize + index_add_, and against the read bandwidth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import torch
from registry import Case, side_by_side

import aniso

_CHUNK = 50_000


@dataclass(frozen=True)
class Kind:
    """Rows and their groups: of equal size one after the other, or drawn in any order."""

    name: str
    groups: int
    ordered: bool
    rows: int = 200_000
    dim: int = 768


_KINDS = (
    Kind("sentences", 10_000, ordered=True),
    Kind("tokens", 30_000, ordered=False),
    Kind("pairs in order", 1_000_000, ordered=True, rows=2_000_000, dim=128),
    Kind("groups in any order", 1_000_000, ordered=False, rows=2_000_000, dim=128),
)


def make(dtype: torch.dtype, kind: Kind, device: str) -> torch.Tensor:
    """Random rows with a common offset, so that cosines are far from zero."""
    torch.manual_seed(0)
    x = torch.empty(kind.rows, kind.dim, dtype=dtype, device=device)
    for chunk in x.split(_CHUNK):
        chunk.copy_(torch.randn(chunk.shape, device=device) + 0.3)
    return x


@cache
def group_ids(kind: Kind, device: torch.device) -> torch.Tensor:
    """The group of every row."""
    if kind.ordered:
        return torch.arange(kind.rows, device=device) // (kind.rows // kind.groups)
    random = torch.Generator().manual_seed(0)
    return torch.randint(kind.groups, (kind.rows,), generator=random).to(device)


def group_cosine(kind: Kind, x: torch.Tensor) -> float:
    """Ours."""
    return aniso.group_cosine(x, group_ids(kind, x.device)).within


def torch_index_add(kind: Kind, x: torch.Tensor) -> float:
    """What one writes in torch for the mean cosine within groups."""
    ids = group_ids(kind, x.device)
    sums = x.new_zeros(kind.groups, x.shape[1])
    sums.index_add_(0, ids, torch.nn.functional.normalize(x, dim=1))
    return within_of(sums, ids)


def within_of(sums: torch.Tensor, ids: torch.Tensor) -> float:
    """(Σ‖ŝ_g‖² − N)/Σ n_g(n_g − 1)."""
    counts = torch.bincount(ids, minlength=len(sums)).double()
    pairs = float((counts * (counts - 1)).sum())
    return (float((sums.double() ** 2).sum()) - len(ids)) / pairs


def error_of_within(kind: Kind, within: float, x: torch.Tensor) -> float:
    """Relative error of the mean cosine within groups against float64."""
    ids = group_ids(kind, x.device)
    sums = x.new_zeros((kind.groups, x.shape[1]), dtype=torch.float64)
    for rows, chunk in zip(x.split(_CHUNK), ids.split(_CHUNK), strict=True):
        sums.index_add_(0, chunk, torch.nn.functional.normalize(rows.double(), dim=1))
    return abs(within / within_of(sums, ids) - 1)


def case(dtype: torch.dtype, kind: Kind) -> Case:
    """The case of one dtype and one kind of groups."""
    name = str(dtype).removeprefix("torch.")
    return Case(
        op="group_moments",
        shape=f"{kind.rows}x{kind.dim} {name} {kind.groups} {kind.name}",
        make=partial(make, dtype, kind),
        ours=partial(group_cosine, kind),
        peers={"torch normalize + index_add": partial(torch_index_add, kind)},
        error=partial(error_of_within, kind),
        nbytes=kind.rows * kind.dim * dtype.itemsize,
    )


test_group_moments = side_by_side(
    *(case(dtype, kind) for dtype in (torch.float32, torch.bfloat16) for kind in _KINDS)
)
