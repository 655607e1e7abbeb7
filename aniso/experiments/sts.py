"""Semantic textual similarity by layer: what whitening and SoftDecay do to sentence vectors."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError
from aniso.experiments._output import number, plain_table, save_results, short_name
from aniso.experiments._plot import by_layer
from aniso.models import TextModel, attach, hook_points, run_texts
from aniso.progress import Progress, ProgressMode
from aniso.transform import MODES, Whitening, soft_decay

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from rich.table import Table
    from torch import Tensor

    from aniso._names import Selection

ALPHAS = (-0.2, -0.4, -0.6, -0.8)


@dataclass(frozen=True)
class StsPairs:
    """Pairs of sentences and how alike people find them, 0 to 5."""

    first: list[str]
    second: list[str]
    scores: list[float]


@dataclass(frozen=True)
class StsReport:
    """Spearman's correlation of cosines with people's scores.

    Attributes:
        spearman: ×100, by layer in order of execution, then by method: "plain", "whitening",
            "paper α" and "continuous α" of SoftDecay. NaN where cosines or scores are all equal.
        provenance: Data, model and versions.
    """

    spearman: dict[str, dict[str, float]]
    provenance: dict[str, Any]

    @property
    def methods(self) -> list[str]:
        """Names of the methods."""
        return list(next(iter(self.spearman.values())))

    def results(self) -> dict[str, Any]:
        """What the JSON file holds; a correlation that is not defined is null."""
        layers = [
            {"name": name, "spearman": {m: number(v) for m, v in values.items()}}
            for name, values in self.spearman.items()
        ]
        return {"schema": 1, "experiment": "sts", "layers": layers, "provenance": self.provenance}

    def table(self) -> Table:
        """One row per method, one column per layer, the best method of each layer in bold."""
        from rich.text import Text

        table = plain_table(
            "paper, continuous: SoftDecay with that α",
            ["Spearman ×100", *(short_name(name) for name in self.spearman)],
        )
        for method in self.methods:
            cells = [
                Text(f"{values[method]:.1f}", "bold" if values[method] == _best(values) else "")
                for values in self.spearman.values()
            ]
            table.add_row(method, *cells)
        return table

    def save(self, folder: Path) -> list[Path]:
        """Writes sts.json, then sts.svg; returns their paths.

        Raises:
            InputError: matplotlib is not installed; sts.json is written all the same.
        """
        return save_results(
            folder, "sts", self.results(), lambda: by_layer(self.spearman, "Spearman ×100")
        )


def read_sts(path: Path) -> StsPairs:
    """The pairs of an STS file: tab-separated, score and sentences in columns 5, 6 and 7.

    Raises:
        InputError: the file cannot be read, has fewer than two pairs, or a line is not so.
    """
    try:
        lines = re.split(r"\r\n|\r|\n", path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); pass an STS file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; convert it") from error
    rows = [_pair(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if len(rows) < 2:
        raise InputError(f"{path} has {len(rows)} pairs; a correlation needs at least 2")
    scores, first, second = (list(column) for column in zip(*rows, strict=True))
    return StsPairs(first, second, scores)


def _pair(path: Path, number: int, line: str) -> tuple[float, str, str]:
    fields = line.split("\t")
    try:
        return float(fields[4]), fields[5], fields[6]
    except (IndexError, ValueError) as error:
        raise InputError(
            f"{path}, line {number}: columns 5, 6 and 7 are not a score and two sentences; pass a "
            "tab-separated STS file"
        ) from error


def mean_vectors(
    loaded: TextModel,
    texts: Sequence[str],
    layers: Selection = None,
    *,
    batch_size: int = 64,
    after_batch: Callable[[int], None] = lambda count: None,
) -> dict[str, Tensor]:
    """The mean over each text's tokens, special tokens included, of every layer's hidden states.

    Args:
        loaded: From `load_model`.
        texts: What to run, in order.
        layers: Names, globs or positions. Default: the embedding layer and every block.
        batch_size: Texts per call of the model.
        after_batch: Called with the number of texts of each batch.

    Returns:
        {layer: [texts, d] float32}, in order of execution.

    Raises:
        InputError: no such layer, or one that did not run.
    """
    vectors: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        for point in hook_points(loaded.model, layers):
            collected = vectors.setdefault(point.name, [])
            stack.enter_context(attach(loaded.model, point.name, _collector(collected)))
        run_texts(loaded, texts, batch_size=batch_size, after_batch=after_batch)
    for name, parts in vectors.items():
        if not parts:
            raise InputError(f"layer {name} did not run; choose layers that run")
    return {name: torch.cat(parts) for name, parts in vectors.items()}


def _collector(collected: list[Tensor]) -> Callable[..., Tensor]:
    """A transform that changes nothing and keeps the means over tokens."""

    def transform(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        rows = hidden.float()
        if mask is None:
            collected.append(rows.mean(dim=1).cpu())
        else:
            sums = torch.where(mask[:, :, None], rows, 0).sum(dim=1)
            collected.append((sums / mask.sum(dim=1, keepdim=True)).cpu())
        return hidden

    return transform


def sts(
    loaded: TextModel,
    pairs: StsPairs,
    provenance: Mapping[str, Any],
    *,
    alphas: Sequence[float] = ALPHAS,
    layers: Selection = None,
    batch_size: int = 64,
    progress: ProgressMode = True,
) -> StsReport:
    """Spearman's ρ of cosines of mean vectors with people's scores, by layer and method.

    The vectors of the first sentences are one matrix, those of the second another; each is
    transformed by itself.

    Args:
        loaded: From `load_model`.
        pairs: From `read_sts`.
        provenance: What the report says of data and model.
        alphas: α of SoftDecay, each in both modes.
        layers: Names, globs or positions. Default: the embedding layer and every block.
        batch_size: Texts per call of the model.
        progress: Show progress on stderr; "json" for JSON lines.

    Raises:
        InputError: scipy is not installed, an alpha outside (−1, 0), or no such layer.

    Reference: Yan et al., "Addressing Token Uniformity in Transformers via Singular Value
    Transformation", UAI 2022, table 3; Su et al., "Whitening Sentence Representations for Better
    Semantics and Faster Retrieval", 2021.
    """
    _require_scipy()
    methods = _methods(alphas)
    with Progress("sts", 2 * len(pairs.scores), progress, unit="texts") as shown:
        first, second = (
            mean_vectors(loaded, side, layers, batch_size=batch_size, after_batch=shown.advance)
            for side in (pairs.first, pairs.second)
        )
    spearman = {
        name: {m: _spearman(f(first[name]), f(second[name]), pairs.scores) for m, f in methods}
        for name in first
    }
    facts = {"pairs": len(pairs.scores), "alphas": list(alphas), "pooling": "mean of all tokens"}
    return StsReport(spearman, {**provenance, **facts})


def _methods(alphas: Sequence[float]) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    def decay(alpha: float, mode: str) -> Callable[[Tensor], Tensor]:
        return lambda x: soft_decay(x, alpha, mode=mode)

    plain: list[tuple[str, Callable[[Tensor], Tensor]]] = [
        ("plain", lambda x: x),
        ("whitening", Whitening()),
    ]
    return plain + [(f"{mode} {alpha:g}", decay(alpha, mode)) for mode in MODES for alpha in alphas]


def _spearman(a: Tensor, b: Tensor, scores: Sequence[float]) -> float:
    from scipy import stats

    cosines = torch.nn.functional.cosine_similarity(a.double(), b.double())
    if len(set(scores)) < 2 or bool((cosines == cosines[0]).all()):
        return float("nan")
    return 100 * float(stats.spearmanr(cosines.numpy(), scores).statistic)


def _require_scipy() -> None:
    try:
        import scipy  # noqa: F401
    except ImportError as error:
        raise InputError('correlations need scipy; pip install "aniso[experiments]"') from error


def _best(values: Mapping[str, float]) -> float:
    return max(v for v in values.values() if v == v) if any(v == v for v in values.values()) else 0
