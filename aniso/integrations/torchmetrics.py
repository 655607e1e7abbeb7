"""The exact metrics of a layer as a torchmetrics metric."""

from __future__ import annotations

from dataclasses import replace
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError
from aniso.metrics import METRICS
from aniso.state import LayerState

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError("torchmetrics is missing; pip install torchmetrics") from error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


class LayerMetric(Metric):
    """Metrics over all rows that updates brought, on all processes: exact, not averaged.

    The state is that of a `LayerState` in one tensor. Two states merge into the state of both row
    sets, so what `forward`, `sync` and `merge_state` give is what one process with all rows gives,
    to rounding in float64. It is 8 · (2 d² + O(d)) bytes, or 8 · O(d) without the Gram.

    Args:
        dim: d, the width of the rows.
        metrics: Keys of `METRICS`; a single string makes `compute` give a tensor in place of a
            dict.
        gram: Keep second moments: variance of the cosine and all spectra need them.
        options: Those of `torchmetrics.Metric`.

    Raises:
        InputError: dim is not positive, an unknown metric, or one that needs the Gram without it.

    Example:
        >>> metric = LayerMetric(4, "mean_cosine", gram=False)
        >>> metric.update(torch.eye(4))
        >>> metric.compute()
        tensor(0., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    def __init__(
        self,
        dim: int,
        metrics: str | Iterable[str] = ("mean_cosine", "relative_drift", "effective_rank"),
        *,
        gram: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.dim, self.gram = dim, gram
        self.metrics = metrics if isinstance(metrics, str) else tuple(metrics)
        empty = LayerState(dim, gram=gram)
        _check(self._keys, empty)
        joined = partial(_joined, dim, gram)
        self.add_state("sums", default=_packed(empty), dist_reduce_fx=joined)

    @property
    def _keys(self) -> tuple[str, ...]:
        return (self.metrics,) if isinstance(self.metrics, str) else self.metrics

    def update(self, x: Any, mask: Any = None) -> None:
        """Adds rows, [n, d] or [..., d]; `mask`, [n] or [...], keeps those where it is true."""
        self.layer_state().update(x, mask)

    def compute(self) -> Tensor | dict[str, Tensor]:
        """The metrics of all rows so far, 0-d float64 tensors; NaN where undefined."""
        found = self.layer_state().compute().metrics
        values = {
            key: torch.tensor(found[key], dtype=torch.float64, device=self.sums.device)
            for key in self._keys
        }
        return values[self.metrics] if isinstance(self.metrics, str) else values

    def layer_state(self) -> LayerState:
        """The sums as a `LayerState`, in the same memory."""
        return _layer_state(self.dim, self.gram, self.sums)


def _check(keys: tuple[str, ...], empty: LayerState) -> None:
    known = empty.compute().metrics
    for key in keys:
        if key not in METRICS:
            raise InputError(f"there is no metric {key!r}; use keys of aniso.METRICS")
        if key not in known:
            raise InputError(f"{key} needs second moments; build the metric with gram=True")


def _packed(state: LayerState) -> Tensor:
    """All accumulators in one float64 tensor; integers by their bits."""
    parts = [t.reshape(-1).view(torch.float64) for t in state.state_dict().values()]
    return torch.cat(parts)


def _layer_state(dim: int, gram: bool, sums: Tensor) -> LayerState:
    """The state whose accumulators are views of `sums`."""
    state = LayerState(dim, gram=gram, device=sums.device)
    views, at = {}, 0
    for name, like in state.state_dict().items():
        part = sums[at : at + like.numel()]
        views[name] = part.view(like.dtype).view(like.shape)
        at += like.numel()
    state.moments = replace(state.moments, **{name: views[name] for name in vars(state.moments)})
    if state.grams is not None:
        grams = {name: views[f"gram_{name}"] for name in vars(state.grams)}
        state.grams = replace(state.grams, **grams)
    return state


def _joined(dim: int, gram: bool, stacked: Tensor) -> Tensor:
    """The sums of all row sets whose sums these are, [sets, …]."""
    return _packed(reduce(LayerState.merge, (_layer_state(dim, gram, one) for one in stacked)))
