"""Two sources side by side: rows, states or metrics in, a Comparison out."""

from __future__ import annotations

from typing import Any

from aniso.errors import InputError
from aniso.metrics import Comparison, LayerMetrics, compare_metrics
from aniso.ops._arrays import check_mask, check_pairs, require_finite_pairs
from aniso.state import LayerState, PairedState


def compare(a: Any, b: Any, *, mask: Any = None) -> Comparison:
    """How alike two sources are, and what changed from one to the other.

    RSA-Pearson is the correlation of cos(a_i, a_j) with cos(b_i, b_j) over all pairs i < j;
    debiased CKA is HSIC_1(K, L)/√(HSIC_1(K, K) HSIC_1(L, L)) of the linear kernels K = aaᵀ and
    L = bbᵀ. Both come from one pass over the rows, without the N² pairs; `delta` is b − a of every
    metric.

    Args:
        a: Rows, shape [n, da], float64/float32/float16/bfloat16, CPU or CUDA; or a LayerState or
            LayerMetrics: its rows are gone, so that only `delta` can be given, and `rows`,
            `rsa_pearson` and `debiased_cka` are None.
        b: The same of the second source, [n, db]; row i of b belongs to row i of a.
        mask: Pairs of rows to keep, shape [n], bool. Default: all. Only with rows.

    Returns:
        Comparison, float64. Pairs of which a row is zero have no cosine and are counted in
        `zero_rows` of both sources. Rows that do not fit in memory go block by block through a
        `PairedState`, whose `compute()` gives the same.

    Raises:
        InputError: not two arrays of equally many rows on one device, not of a floating dtype, a
            kept row is not finite, mask is not bool [n], or rows on one side alone.

    Time O(n (da + db)² + da³ + db³), memory O((da + db)²). Accumulates in float64. Equivalent to
    `reference.rsa_pearson` and `reference.debiased_cka`.
    Reference: Kriegeskorte et al. 2008 (RSA); Song et al. 2012, Kornblith et al. 2019, Nguyen et
    al. 2021 (debiased CKA).

    Example:
        >>> x = torch.randn(50, 8)
        >>> result = compare(x, 2 * x)
        >>> round(result.debiased_cka, 6), round(result.delta["mean_norm"], 6) > 0
        (1.0, True)
    """
    if isinstance(a, LayerState | LayerMetrics) or isinstance(b, LayerState | LayerMetrics):
        if mask is not None:
            raise InputError("mask is given with a state; it chooses rows, pass it with two arrays")
        return compare_metrics(_metrics(a, "a"), _metrics(b, "b"))
    names = ("a", "b")
    x, y = check_pairs(a, b, names)
    kept = check_mask(mask, x)
    state = PairedState(x.shape[1], y.shape[1], device=x.device)
    state.update(x, y, kept)
    if state.sums.moments_x.nonfinite_rows:
        require_finite_pairs(x, y, kept, names)
    return state.compute()


def _metrics(source: Any, name: str) -> LayerMetrics:
    if isinstance(source, LayerMetrics):
        return source
    if isinstance(source, LayerState):
        return source.compute()
    raise InputError(
        f"{name} is a {type(source).__name__} and the other side a state; pass two arrays, or two "
        "of LayerState or LayerMetrics"
    )
