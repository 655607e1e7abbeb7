"""Queries and keys of every head: how far they drift, whether they align, what logits follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError
from aniso.experiments._output import number, plain_table, save_results
from aniso.experiments._plot import Line, Panel, draw, layer_labels, shade
from aniso.models import TextModel, run_texts
from aniso.models.attention_heads import AttentionHeads, attention_heads
from aniso.models.inputs import TokenFilter
from aniso.progress import Progress, ProgressMode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.table import Table
    from torch import Tensor

    from aniso._names import Selection

HEAD_METRICS = (
    "query_norm",
    "key_norm",
    "query_drift",
    "key_drift",
    "drift_cosine",
    "logit_mean",
    "logit_var",
)
"""What is known of every head; see `query_key`."""

HeadMetrics = dict[str, list[float]]


@dataclass(frozen=True)
class QueryKeyReport:
    """Numbers per head.

    Attributes:
        models: {model: {attention module: {key of HEAD_METRICS: one number per head}}}.
        provenance: Texts and models.
    """

    models: dict[str, dict[str, HeadMetrics]]
    provenance: dict[str, Any]

    def results(self) -> dict[str, Any]:
        """What the JSON file holds; a number that is not defined is null."""
        models = [
            {"model": model, "layers": [_layer_results(*item) for item in layers.items()]}
            for model, layers in self.models.items()
        ]
        head = {"schema": 1, "experiment": "query-key"}
        return {**head, "models": models, "provenance": self.provenance}

    def table(self) -> Table:
        """One row per attention module: means over its heads."""
        columns = ["attention", "‖mean q‖", "‖mean k‖", "cosine", "logit", "±"]
        table = plain_table("means over heads; ±: root of the mean variance", columns)
        for model, layers in self.models.items():
            for name, metrics in layers.items():
                means = {key: sum(values) / len(values) for key, values in metrics.items()}
                cells = [means[key] for key in ("query_drift", "key_drift", "drift_cosine")]
                cells += [means["logit_mean"], means["logit_var"] ** 0.5]
                label = f"{model} {name}" if len(self.models) > 1 else name
                table.add_row(label, *(f"{cell:.3f}" for cell in cells))
        return table

    def save(self, folder: Path) -> list[Path]:
        """Writes query-key.json, then query-key.svg; returns their paths.

        Raises:
            InputError: matplotlib is not installed; the JSON file is written all the same.
        """
        return save_results(folder, "query-key", self.results(), self._svg)

    def _svg(self) -> str:
        axes = {
            "query_drift": ("mean query", "norm"),
            "key_drift": ("mean key", "norm"),
            "drift_cosine": ("mean query and mean key", "cosine"),
            "logit_mean": ("logits", "mean"),
            "logit_var": ("logits, logarithmic", "variance"),
        }
        return draw([self._panel(key, *words) for key, words in axes.items()])

    def _panel(self, key: str, title: str, y_label: str) -> Panel:
        lines = []
        for i, (model, layers) in enumerate(self.models.items()):
            dots = [(x, y) for x, found in enumerate(layers.values()) for y in found[key]]
            x, y = zip(*dots, strict=True)
            lines.append(Line(model, x, y, shade(i, len(self.models)), style=""))
        path, names = layer_labels(self.models)
        log = "y" if key == "logit_var" else ""
        return Panel(title, f"{path}; a dot is a head", lines, names, log, y_label)


def _layer_results(name: str, metrics: HeadMetrics) -> dict[str, Any]:
    return {"name": name, "heads": {key: [number(v) for v in metrics[key]] for key in metrics}}


class HeadState:
    """Sums over tokens of one attention module, from which `HEAD_METRICS` follow.

    Memory O(heads · d_h). All sums are float64.

    Args:
        heads: What is read.
    """

    def __init__(self, heads: AttentionHeads) -> None:
        self._heads = heads
        self._tokens = 0
        self._pairs = 0.0
        self._sums: list[Tensor | float] = [0.0] * 4
        self._mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def update(self, queries: Tensor, keys: Tensor, mask: Tensor | None) -> None:
        """Folds in the sequences of queries and keys, the outputs of the projections.

        The mean logit of a sequence is scale · m_qᵀm_k; its variance over all (q, k), positive
        term by term, scale² (m_qᵀS_k m_q + m_kᵀS_q m_k + ⟨S_q, S_k⟩).
        """
        q, k = self._heads.queries(queries).double(), self._heads.keys(keys).double()
        # Grouped queries share a key.
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        keep = q.new_ones(len(q), q.shape[2]) if mask is None else mask.double()
        counts = keep.sum(dim=1)
        (m_q, s_q), (m_k, s_k) = (_moments(x, keep, counts) for x in (q, k))
        scale = self._heads.scale
        means = scale * (m_q * m_k).sum(dim=2)
        across = torch.einsum("bhi,bhij,bhj->bh", m_q, s_k, m_q)
        across += torch.einsum("bhi,bhij,bhj->bh", m_k, s_q, m_k)
        self._add_logits(means, scale**2 * (across + (s_q * s_k).sum(dim=(2, 3))), counts**2)
        self._tokens += int(counts.sum())
        parts = [(x * keep[:, None, :, None]).sum(dim=(0, 2)) for x in (q, k)]
        parts += [(x.norm(dim=3) * keep[:, None]).sum(dim=(0, 2)) for x in (q, k)]
        self._sums = [total + part for total, part in zip(self._sums, parts, strict=True)]

    def _add_logits(self, means: Tensor, variances: Tensor, pairs: Tensor) -> None:
        """Folds in means and variances [b, h] over pairs [b] of tokens (Chan et al. 1979)."""
        more = float(pairs.sum())
        if not more:
            return
        weights = (pairs / more)[:, None]
        mean = (weights * means).sum(dim=0)
        squares = more * (weights * (variances + (means - mean) ** 2)).sum(dim=0)
        total, gap = self._pairs + more, mean - self._mean
        self._squares = self._squares + squares + gap**2 * (self._pairs * more / total)
        self._mean = self._mean + gap * (more / total)
        self._pairs = total

    def compute(self) -> HeadMetrics:
        """`HEAD_METRICS`, one number per head.

        Raises:
            InputError: no token was folded in.
        """
        if not self._tokens:
            raise InputError(
                f"{self._heads.name} has seen no token; run texts, or leave it out with layers=…"
            )
        query, key, query_norms, key_norms = (torch.as_tensor(x) / self._tokens for x in self._sums)
        numbers = (
            query_norms,
            key_norms,
            query.norm(dim=1),
            key.norm(dim=1),
            (query * key).sum(dim=1) / (query.norm(dim=1) * key.norm(dim=1)),
            torch.as_tensor(self._mean),
            torch.as_tensor(self._squares) / self._pairs,
        )
        return dict(zip(HEAD_METRICS, (n.tolist() for n in numbers), strict=True))


def _moments(x: Tensor, keep: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [b, h, d] and covariance (1/n) [b, h, d, d] of kept rows of x [b, h, t, d]."""
    weights = (keep / counts.clamp(min=1)[:, None])[:, None, :, None]
    mean = (weights * x).sum(dim=2, keepdim=True)
    centred = (x - mean) * weights.sqrt()
    return mean.squeeze(2), centred.mT @ centred


class _Reader:
    """Hooks that hold a module's queries until its keys come, then fold both in."""

    def __init__(self, model: torch.nn.Module, layers: Selection) -> None:
        self.states: dict[str, HeadState] = {}
        self._tokens = TokenFilter(model)
        self._held: dict[str, Tensor] = {}
        self._handles = [model.register_forward_pre_hook(self._before_model, with_kwargs=True)]
        for heads in attention_heads(model, layers):
            state = self.states.setdefault(heads.name, HeadState(heads))
            if heads.query is not heads.key:
                self._handles.append(heads.query.register_forward_hook(self._query(heads.name)))
            self._handles.append(heads.key.register_forward_hook(self._key(heads.name, state)))

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before_model(self, module: Any, args: Any, kwargs: Any) -> None:
        self._tokens.read(args, kwargs)

    def _query(self, name: str) -> Any:
        def hook(module: Any, args: Any, output: Tensor) -> None:
            self._held[name] = output

        return hook

    def _key(self, name: str, state: HeadState) -> Any:
        def hook(module: Any, args: Any, output: Tensor) -> None:
            queries = self._held.pop(name, output)
            state.update(queries, output, self._tokens.mask(output, name))

        return hook


def query_key(
    models: Mapping[str, TextModel],
    texts: Sequence[str],
    provenance: Mapping[str, Any],
    *,
    layers: Selection = None,
    batch_size: int = 64,
    progress: ProgressMode = True,
) -> QueryKeyReport:
    """Drift of queries and keys, and the attention logits that follow, head by head.

    query_norm and key_norm are Σ‖q‖/N; query_drift and key_drift ‖Σq‖/N; drift_cosine is the
    cosine of the mean query with the mean key, 1 aligned, −1 opposite; logit_mean and logit_var
    are taken over all (q, k) of one sequence, future tokens included, pairs of all sequences
    together. Queries and keys are read where their projections give them: before rotary position
    embeddings and norms of queries and keys. Special tokens count, padding does not.

    Args:
        models: From `load_model`, by the name to show; several checkpoints, for instance.
        texts: What to run.
        provenance: What the report says of texts and models.
        layers: Paths of attention modules, globs or positions. Default: all.
        batch_size: Texts per call of a model.
        progress: Show progress on stderr; "json" for JSON lines.

    Raises:
        InputError: a model without known projections, no such layer, or an attention module that
            did not run.

    Per token O(heads · d_h²); no logit is formed.
    Reference: Godey et al., "Anisotropy Is Inherent to Self-Attention in Transformers", EACL 2024.
    """
    found = {}
    with Progress("query-key", len(models) * len(texts), progress, unit="texts") as shown:
        for name, loaded in models.items():
            with _Reader(loaded.model, layers) as reader:
                run_texts(loaded, texts, batch_size=batch_size, after_batch=shown.advance)
            found[name] = {path: state.compute() for path, state in reader.states.items()}
    return QueryKeyReport(found, {**provenance, "texts": len(texts)})
