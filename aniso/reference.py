"""The float64 definition of every op and metric: obvious, slow, the truth for tests and benches.

Everything is computed from the rows themselves, by the definition: cosines over explicit pairs,
singular values by an SVD of the rows. Nothing here shares a formula with the fast code.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from aniso.moments import RowMoments

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_PAIR_BLOCK = 2048


def kept_rows(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The rows that count, in float64: not masked, all values finite."""
    x = x.to(torch.float64)
    keep = torch.isfinite(x).all(dim=1)
    return x[keep if mask is None else keep & mask]


def norms(x: Tensor) -> Tensor:
    """‖x_i‖ of every row, free of overflow: max|x| · ‖x/max|x|‖."""
    largest = x.abs().amax(dim=1)
    safe = torch.where(largest > 0, largest, 1.0)
    lengths: Tensor = torch.linalg.vector_norm(x / safe[:, None], dim=1)
    return largest * lengths


def directions(x: Tensor) -> Tensor:
    """x̂_i = x_i/‖x_i‖ of the rows with ‖x_i‖ > 0."""
    x = x[(x != 0).any(dim=1)]
    x = x / x.abs().amax(dim=1, keepdim=True)
    units: Tensor = x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return units


def row_moments(x: Tensor, mask: Tensor | None = None) -> RowMoments:
    """Sums over rows, each written out (state S1)."""
    finite = torch.isfinite(x.to(torch.float64)).all(dim=1)
    masked = torch.zeros_like(finite) if mask is None else ~mask
    rows = kept_rows(x, mask)
    units, lengths = directions(rows), norms(rows)
    empty = RowMoments.zeros(x.shape[1])
    return RowMoments(
        sums=torch.stack([rows.sum(0), units.sum(0), (rows**2).sum(0), (units**2).sum(0)]),
        norm_sums=torch.stack([lengths.sum(), (lengths**2).sum(), (lengths**4).sum()]),
        norm_range=torch.stack([lengths.min(), lengths.max()]) if len(rows) else empty.norm_range,
        abs_max=rows.abs().amax(dim=0) if len(rows) else empty.abs_max,
        counts=torch.tensor(
            [
                len(rows),
                len(rows) - len(units),
                int((~finite & ~masked).sum()),
                int(masked.sum()),
            ]
        ),
    )


def gram(x: Tensor, mask: Tensor | None = None, *, normalize: bool = False) -> Tensor:
    """Σxxᵀ, or Σx̂x̂ᵀ when normalised, [d, d]."""
    rows = kept_rows(x, mask)
    rows = directions(rows) if normalize else rows
    return rows.T @ rows


def kept_pairs(x: Tensor, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The paired rows that count, in float64: not masked, all values of both finite."""
    x, y = x.to(torch.float64), y.to(torch.float64)
    keep = torch.isfinite(x).all(dim=1) & torch.isfinite(y).all(dim=1)
    keep = keep if mask is None else keep & mask
    return x[keep], y[keep]


def paired_directions(x: Tensor, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x̂_i and ŷ_i of the kept pairs of which neither row is zero."""
    x, y = kept_pairs(x, y, mask)
    both = (x != 0).any(dim=1) & (y != 0).any(dim=1)
    return directions(x[both]), directions(y[both])


def cross_gram(
    x: Tensor, y: Tensor, mask: Tensor | None = None, *, normalize: bool = False
) -> Tensor:
    """Σxyᵀ, or Σx̂ŷᵀ when normalised, [dx, dy]."""
    a, b = paired_directions(x, y, mask) if normalize else kept_pairs(x, y, mask)
    return a.T @ b


def rsa_pearson(x: Tensor, y: Tensor) -> float:
    """Pearson correlation of cos(x_i, x_j) and cos(y_i, y_j) over all i < j, pair by pair."""
    a, b = paired_directions(x, y)
    i, j = torch.triu_indices(len(a), len(a), offset=1)
    cosines = torch.stack([(a @ a.T)[i, j], (b @ b.T)[i, j]])
    return float(torch.corrcoef(cosines)[0, 1])


def hsic_1(kernel_x: Tensor, kernel_y: Tensor) -> float:
    """Unbiased HSIC of two kernel matrices [n, n] (Song et al. 2012, HSIC_1), n ≥ 4."""
    n = len(kernel_x)
    k, m = (t - torch.diag(t.diagonal()) for t in (kernel_x, kernel_y))
    one = torch.ones(n, dtype=torch.float64)
    total = (k * m).sum() + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float(total - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def debiased_cka(x: Tensor, y: Tensor) -> float:
    """HSIC_1(K, L)/√(HSIC_1(K, K) HSIC_1(L, L)), K = xxᵀ, L = yyᵀ, rows as they are."""
    x, y = kept_pairs(x, y)
    k, m = x @ x.T, y @ y.T
    return hsic_1(k, m) / math.sqrt(hsic_1(k, k) * hsic_1(m, m))


def cosine_mean_var(x: Tensor) -> tuple[float, float]:
    """Mean and variance of the cosine over all pairs i ≠ j, pair by pair; O(N²) work."""
    units = directions(kept_rows(x))
    n = len(units)
    if n < 2:
        return math.nan, math.nan
    pairs = n * (n - 1)
    mean = sum(_off_diagonal_sum(units, i, lambda c: c) for i in _blocks(n)) / pairs
    squares = sum(_off_diagonal_sum(units, i, lambda c: (c - mean) ** 2) for i in _blocks(n))
    return mean, squares / pairs


def _blocks(n: int) -> list[slice]:
    return [slice(i, min(n, i + _PAIR_BLOCK)) for i in range(0, n, _PAIR_BLOCK)]


def _off_diagonal_sum(units: Tensor, rows: slice, f: Callable[[Tensor], Tensor]) -> float:
    """Σ f(cos) of the block's rows with all other rows, the pairs (i, i) left out."""
    values = f(units[rows] @ units.T)
    values.diagonal(offset=rows.start).zero_()
    return float(values.sum())


def group_moments(x: Tensor, groups: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
    """Per group with a kept row (state S4): ids, directions n_g, Σx, Σx̂, Σ‖x‖²; by ascending id."""
    members = _members(x, groups, mask)
    empty = x.new_zeros((0, x.shape[1]), dtype=torch.float64)
    return (
        torch.tensor(list(members), dtype=torch.int64),
        torch.tensor([len(directions(rows)) for rows in members.values()], dtype=torch.int64),
        torch.stack([rows.sum(0) for rows in members.values()]) if members else empty,
        torch.stack([directions(rows).sum(0) for rows in members.values()]) if members else empty,
        torch.tensor([(norms(rows) ** 2).sum() for rows in members.values()], dtype=torch.float64),
    )


def _members(x: Tensor, groups: Tensor, mask: Tensor | None) -> dict[int, Tensor]:
    """The kept rows of every group id ≥ 0, in float64, by ascending id."""
    keep = torch.isfinite(x.to(torch.float64)).all(dim=1) & (groups >= 0)
    keep = keep if mask is None else keep & mask
    ids = [int(g) for g in groups[keep].unique()]
    return {g: x[keep & (groups == g)].to(torch.float64) for g in ids}


def group_cosine(x: Tensor, groups: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
    """Cosines within and between groups, from the matrix of all of them; O(N²) memory."""
    members = _members(x, groups, mask)
    units = [directions(rows) for rows in members.values()]
    label = torch.cat([torch.full((len(u),), g) for g, u in zip(members, units, strict=True)])
    cosines = torch.cat(units) @ torch.cat(units).T
    same = label[:, None] == label[None, :]
    pair = ~torch.eye(len(label), dtype=torch.bool)
    per_group = torch.stack([cosines[same & pair & (label == g)].mean() for g in members])
    towards_mean = [
        (u @ directions(rows.mean(dim=0, keepdim=True)).sum(0)).mean()
        for rows, u in zip(members.values(), units, strict=True)
    ]
    return {
        "within": float(cosines[same & pair].mean()),
        "within_mean": float(per_group.nanmean()),
        "between": float(cosines[~same].mean()),
        "per_group": per_group,
        "intra_similarity": torch.stack(towards_mean),
    }


def first_token_cosine(x: Tensor, groups: Tensor, mask: Tensor | None = None) -> float:
    """Mean over groups of the mean cosine of the group's first row with its others."""
    means = []
    for rows in _members(x, groups, mask).values():
        others = directions(rows[1:])
        if bool((rows[0] != 0).any()) and len(others):
            means.append(float((others @ directions(rows[:1])[0]).mean()))
    return sum(means) / len(means) if means else math.nan


def lsds(x: Tensor, y: Tensor, neighbours: int = 12, t: float = 0.5) -> float:
    """mean_i ‖y_i − Σ_j exp(−‖x_i − x_j‖²/t) y_j‖ over the nearest j ≠ i of x_i, row by row."""
    total = 0.0
    for i, row in enumerate(x.double()):
        squares = {j: float(((row - other) ** 2).sum()) for j, other in enumerate(x.double())}
        nearest = sorted(squares.keys() - {i}, key=squares.__getitem__)[:neighbours]
        moved = y[i].double()
        for j in nearest:
            moved = moved - math.exp(-squares[j] / t) * y[j].double()
        total += float(moved.norm())
    return total / len(x)


def contributions(x: Tensor) -> Tensor:
    """Share of each dimension in the mean cosine: mean over i < j of x̂_ik x̂_jk, [d].

    Pair by pair, each row times the sum of the rows before it; O(N) work.
    """
    units = directions(kept_rows(x))
    n = len(units)
    before = units.cumsum(dim=0) - units
    return (units * before).sum(dim=0) / (n * (n - 1) / 2)


def singular_values(x: Tensor) -> Tensor:
    """σ of the kept rows, uncentred, descending, by an SVD of the rows."""
    sigma: Tensor = torch.linalg.svdvals(kept_rows(x))
    return sigma


def sequence_spectra(x: Tensor, kept: Tensor, edges: Tensor) -> list[dict[str, Any]]:
    """Per sequence of x [b, t, d]: σ of its kept tokens, numbers of their shape, their CDF."""
    each = []
    for rows, keep in zip(x.to(torch.float64), kept, strict=True):
        sigma = torch.linalg.svdvals(rows[keep])
        if not len(sigma) or not sigma[0] > 0:
            each.append({"singular_values": sigma})
            continue
        deviation, energy = sigma - sigma.mean(), sigma**2
        spread = float((deviation**2).mean())
        skewness = float((deviation**3).mean()) / spread**1.5 if len(sigma) > 1 else math.nan
        shares = {k: float(energy[:k].sum() / energy.sum()) for k in (1, 3, 10)}
        each.append(
            {
                "singular_values": sigma,
                "sv_skewness": skewness,
                "sv_median_ratio": float(sigma.quantile(0.5) / sigma[0]),
                **{f"explained_variance_{k}": share for k, share in shares.items()},
                "cdf": (sigma[:, None] / sigma[0] <= edges).double().mean(dim=0),
            }
        )
    return each


def spectral_map(x: Tensor, f: Callable[[Tensor], Tensor], mask: Tensor | None = None) -> Tensor:
    """U f(S) Vᵀ of the kept rows of one matrix [m, n]; directions with σ = 0 give nothing."""
    keep = torch.ones(len(x), dtype=torch.bool) if mask is None else mask
    mapped = x.to(torch.float64, copy=True)
    u, s, vh = torch.linalg.svd(mapped[keep], full_matrices=False)
    if bool((s > 0).any()):
        present = s > 1e-12 * s.max()
        mapped[keep] = (u * torch.where(present, f(s), 0.0)) @ vh
    return mapped


def soft_decay(x: Tensor, alpha: float, mode: str = "paper", mask: Tensor | None = None) -> Tensor:
    """K f(S), f(s) = −ln(1 − α(s + α))/α, less f(0) in continuous mode; K = σ₁/f(σ₁)."""

    def f(s: Tensor) -> Tensor:
        at_zero = 0.0 if mode == "paper" else -math.log(1 - alpha**2) / alpha
        return -torch.log(1 - alpha * (s + alpha)) / alpha - at_zero

    def scaled(s: Tensor) -> Tensor:
        return f(s) * s[0] / f(s[0]) if f(s[0]) > 0 else s

    return spectral_map(x, scaled, mask)


def pair_cosines(x: Tensor, y: Tensor | None = None) -> Tensor:
    """Cosines of all pairs i < j of rows of x, or of all pairs of a row of x and one of y, flat."""
    units = directions(x.double())
    if y is not None:
        return (units @ directions(y.double()).T).flatten()
    i, j = torch.triu_indices(len(units), len(units), 1)
    return (units @ units.T)[i, j]


def covariance_eigenvalues(x: Tensor) -> Tensor:
    """λ of the covariance (1/N) of the kept rows, descending, by an SVD of the centred rows."""
    rows = kept_rows(x)
    sigma = torch.linalg.svdvals(rows - rows.mean(dim=0))
    spectrum = torch.zeros(x.shape[1], dtype=torch.float64)
    spectrum[: len(sigma)] = sigma**2 / len(rows)
    return spectrum


def entropy(weights: Tensor) -> float:
    """H(p) = −Σ p log p of the weights scaled to sum 1, in nats."""
    p = weights[weights > 0] / weights.sum()
    return float(-(p * p.log()).sum())


def alpha_req(eigenvalues: Tensor) -> float:
    """α of λ_j ∝ j^−α: weighted least squares of log λ_j on log j, j = 10..100, weights 1/j."""
    if len(eigenvalues) < 12:
        return math.nan
    j = torch.arange(10, min(100, len(eigenvalues)) + 1, dtype=torch.float64)
    weights = torch.diag(1 / j)
    design = torch.stack([j.log(), torch.ones_like(j)], dim=1)
    target = eigenvalues[9 : 9 + len(j)].log()
    slope, _ = torch.linalg.solve(design.T @ weights @ design, design.T @ weights @ target)
    return -float(slope)


def layer_metrics(x: Tensor) -> dict[str, float]:
    """Every metric of one layer from its rows [N, d], each by its definition."""
    rows, dim = kept_rows(x), x.shape[1]
    lengths, sigma, lam = norms(rows), singular_values(x), covariance_eigenvalues(x)
    mean, var = cosine_mean_var(x)
    density = torch.linalg.eigvalsh(gram(x, normalize=True) / len(directions(rows)))
    drift = float(torch.linalg.vector_norm(rows.mean(dim=0)))
    energy = sigma**2
    deviation = sigma - sigma.mean()
    shares = contributions(x).sort(descending=True).values / (mean if mean > 0 else math.nan)
    participation = float(lam.sum() ** 2 / (lam**2).sum())
    return {
        "mean_cosine": mean,
        "var_cosine": var,
        "std_cosine": math.sqrt(var),
        **{f"rogue_share_{k}": float(shares[:k].sum()) for k in (1, 3, 10)},
        "drift_norm": drift,
        "mean_norm": float(lengths.mean()),
        "rms_norm": float((lengths**2).mean().sqrt()),
        "relative_drift": drift / float(lengths.mean()),
        **{f"explained_variance_{k}": float(energy[:k].sum() / energy.sum()) for k in (1, 3, 10)},
        "rankme": math.exp(entropy(sigma)),
        "singular_entropy_kl": math.log(dim) - entropy(sigma),
        "stable_rank": float(energy.sum() / energy[0]),
        "sv_skewness": float((deviation**3).mean() / (deviation**2).mean() ** 1.5),
        "sv_median_ratio": float(sigma.quantile(0.5) / sigma[0]),
        "alpha_req": alpha_req(lam),
        "participation_ratio": participation,
        "isoscore": (participation - 1) / (dim - 1),
        "spectral_anisotropy": float(lam[0] / lam.sum()),
        "effective_rank": math.exp(entropy(lam)),
        "von_neumann_entropy": entropy(density),
        "renyi2_entropy": -math.log(float((density**2).sum())),
    }
