"""group_cosine against torch normalize + index_add_, and against the read bandwidth."""

from __future__ import annotations

from functools import cache, partial

import torch
from registry import Case, side_by_side

import aniso

_ROWS, _DIM = 200_000, 768
_CHUNK = 50_000
_SENTENCES, _TOKENS = 10_000, 30_000


def make(dtype: torch.dtype, device: str) -> torch.Tensor:
    """Random rows with a common offset, so that cosines are far from zero."""
    torch.manual_seed(0)
    x = torch.empty(_ROWS, _DIM, dtype=dtype, device=device)
    for chunk in x.split(_CHUNK):
        chunk.copy_(torch.randn(chunk.shape) + 0.3)
    return x


@cache
def group_ids(groups: int, device: torch.device) -> torch.Tensor:
    """Sentences of 20 rows one after the other, or tokens of a vocabulary in any order."""
    if groups == _SENTENCES:
        return torch.arange(_ROWS, device=device) // (_ROWS // groups)
    return torch.randint(groups, (_ROWS,), generator=torch.Generator().manual_seed(0)).to(device)


def group_cosine(groups: int, x: torch.Tensor) -> float:
    """Ours."""
    return aniso.group_cosine(x, group_ids(groups, x.device)).within


def torch_index_add(groups: int, x: torch.Tensor) -> float:
    """What one writes in torch for the mean cosine within groups."""
    ids = group_ids(groups, x.device)
    sums = x.new_zeros(groups, x.shape[1])
    sums.index_add_(0, ids, torch.nn.functional.normalize(x, dim=1))
    return within_of(sums, ids)


def within_of(sums: torch.Tensor, ids: torch.Tensor) -> float:
    """(Σ‖ŝ_g‖² − N)/Σ n_g(n_g − 1)."""
    counts = torch.bincount(ids, minlength=len(sums)).double()
    pairs = float((counts * (counts - 1)).sum())
    return (float((sums.double() ** 2).sum()) - len(ids)) / pairs


def error_of_within(groups: int, within: float, x: torch.Tensor) -> float:
    """Relative error of the mean cosine within groups against float64."""
    ids = group_ids(groups, x.device)
    sums = x.new_zeros((groups, x.shape[1]), dtype=torch.float64)
    for rows, chunk in zip(x.split(_CHUNK), ids.split(_CHUNK), strict=True):
        sums.index_add_(0, chunk, torch.nn.functional.normalize(rows.double(), dim=1))
    return abs(within / within_of(sums, ids) - 1)


def case(dtype: torch.dtype, groups: int) -> Case:
    """The case of one dtype and one kind of groups."""
    kind = "sentences" if groups == _SENTENCES else "tokens"
    return Case(
        op="group_moments",
        shape=f"{_ROWS}x{_DIM} {str(dtype).removeprefix('torch.')} {groups} {kind}",
        make=partial(make, dtype),
        ours=partial(group_cosine, groups),
        peers={"torch normalize + index_add": partial(torch_index_add, groups)},
        error=partial(error_of_within, groups),
        nbytes=_ROWS * _DIM * dtype.itemsize,
    )


test_group_moments = side_by_side(
    *(case(d, g) for d in (torch.float32, torch.bfloat16) for g in (_SENTENCES, _TOKENS))
)
