"""An untrained transformer block under a common bias: how drift alone makes states alike."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from aniso.errors import InputError
from aniso.experiments._output import plain_table, save_results
from aniso.experiments._plot import Line, Panel, draw
from aniso.progress import Progress, ProgressMode
from aniso.state import LayerState

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.table import Table
    from torch import Tensor

BIAS_NORMS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
_STD = 0.02  # BERT's initialisation
_LAYER_NORM_EPS = 1e-12  # BERT's
# Title, vertical axis, lines as (label, attribute of BiasPoint), logarithmic axes.
_PANELS = (
    ("mean norm of the rows", "norm", (("before", "norm_in"), ("behind", "norm_out")), "xy"),
    ("mean cosine of the rows", "cosine", (("before", "cosine_in"), ("behind", "cosine_out")), "x"),
    ("attention logits", "logit", (("mean", "logit_mean"), ("deviation", "logit_std")), "xy"),
    (
        "entries of softmax rows",
        "probability",
        (("largest", "softmax_max"), ("smallest", "softmax_min")),
        "x",
    ),
)


@dataclass(frozen=True)
class BlockSize:
    """Sizes of the block and of its input; BERT-base on 16 sequences of 512 tokens by default."""

    dim: int = 768
    heads: int = 12
    sequences: int = 16
    tokens: int = 512
    vocabulary: int = 30522

    def check(self) -> None:
        """Raises InputError where a size is below 1 or heads do not divide dim."""
        for name, value in asdict(self).items():
            if value < 1:
                raise InputError(f"{name} is {value}; it must be 1 or more")
        if self.dim % self.heads:
            raise InputError(f"dim {self.dim} is no multiple of heads {self.heads}; pass one")


@dataclass(frozen=True)
class BiasPoint:
    """What one norm N of the bias gives.

    Attributes:
        bias_norm: N.
        norm_in, norm_out: Mean ‖x + b‖ and mean ‖T(x + b)‖.
        cosine_in, cosine_out: Mean cosine of all pairs of tokens, before and behind the block.
        logit_mean, logit_std: Of the attention logits qᵀk/√d_h within sequences, all heads.
        logit_min, logit_max: Their extremes.
        softmax_max, softmax_min: Mean over the rows of the softmax of a row's largest and
            smallest entry; 1/tokens where attention is uniform.
    """

    bias_norm: float
    norm_in: float
    norm_out: float
    cosine_in: float
    cosine_out: float
    logit_mean: float
    logit_std: float
    logit_min: float
    logit_max: float
    softmax_max: float
    softmax_min: float


@dataclass(frozen=True)
class UntrainedBlockReport:
    """The sweep, by growing norm of the bias.

    Attributes:
        points: One per norm.
        provenance: Sizes, seed, initialisation.
    """

    points: tuple[BiasPoint, ...]
    provenance: dict[str, Any]

    @property
    def crossings(self) -> tuple[float, ...]:
        """N*: where norm_in and norm_out are equal, by linear interpolation."""
        gaps = [(p.bias_norm, p.norm_in - p.norm_out) for p in self.points]
        return tuple(
            a + (b - a) * left / (left - right)
            for (a, left), (b, right) in pairwise(gaps)
            if (left < 0) != (right < 0)
        )

    def results(self) -> dict[str, Any]:
        """What the JSON file holds."""
        return {
            "schema": 1,
            "experiment": "untrained-block",
            "points": [asdict(point) for point in self.points],
            "crossings": list(self.crossings),
            "provenance": self.provenance,
        }

    def table(self) -> Table:
        """One row per norm of the bias; cosines as their distance from 1."""
        crossings = ", ".join(f"{n:.4g}" for n in self.crossings) or "nowhere"
        columns = ["N", "‖in‖", "‖out‖", "1−cos in", "1−cos out", "logit", "±", "softmax", "least"]
        table = plain_table(f"the norms cross at N* = {crossings}", columns)
        for p in self.points:
            norms = (p.bias_norm, p.norm_in, p.norm_out)
            rest = (1 - p.cosine_in, 1 - p.cosine_out, p.logit_mean, p.logit_std)
            cells = [f"{norm:.4g}" for norm in norms] + [f"{value:.2g}" for value in rest]
            table.add_row(*cells, f"{p.softmax_max:.5f}", f"{p.softmax_min:.5f}")
        return table

    def save(self, folder: Path) -> list[Path]:
        """Writes untrained-block.json, then untrained-block.svg; returns their paths.

        Raises:
            InputError: matplotlib is not installed; the JSON file is written all the same.
        """
        return save_results(folder, "untrained-block", self.results(), self._svg)

    def _svg(self) -> str:
        return draw([self._panel(*drawn) for drawn in _PANELS])

    def _panel(self, title: str, y: str, lines: tuple[tuple[str, str], ...], log: str) -> Panel:
        """Two lines, the first one broad: they meet over most of the sweep."""
        norms = [point.bias_norm for point in self.points]
        curves = [
            Line(
                label,
                norms,
                [getattr(point, name) for point in self.points],
                color="tab:red" if place else "tab:blue",
                broad=not place,
            )
            for place, (label, name) in enumerate(lines)
        ]
        return Panel(title, "norm N of the bias", curves, log=log, y=y)


def untrained_block(
    bias_norms: Sequence[float] = BIAS_NORMS,
    *,
    size: BlockSize | None = None,
    seed: int = 0,
    progress: ProgressMode = True,
) -> UntrainedBlockReport:
    """Puts a bias of growing norm on random tokens and runs them through one untrained block.

    Tokens are drawn uniformly from an embedding table N(0, 0.02²); b ~ N(0, I), one for all
    tokens, is rescaled to ‖b‖ = N. The block T is BERT's (norms behind attention and MLP, GELU),
    its matrices N(0, 0.02²), biases zero. Table, block and the direction of b are the same for
    every N.

    Args:
        bias_norms: The norms N, 0 or more; sorted and without repetitions.
        size: Sizes. Default: BERT-base's on 16 × 512 tokens.
        seed: Of all random numbers.
        progress: Show progress on stderr; "json" for JSON lines.

    Raises:
        InputError: no norm, one that is negative or not finite, or sizes that do not fit.

    Time per norm: one block's forward pass and, once more, its queries, keys and logits.
    Reference: Godey et al., "Anisotropy Is Inherent to Self-Attention in Transformers", EACL 2024.
    """
    norms, size = _check_norms(bias_norms), size or BlockSize()
    size.check()
    generator = torch.Generator().manual_seed(seed)
    block = _bert_block(size, generator)
    table = _normal(generator, size.vocabulary, size.dim)
    shape = (size.sequences, size.tokens)
    x = table[torch.randint(size.vocabulary, shape, generator=generator)]
    direction = torch.nn.functional.normalize(_normal(generator, size.dim), dim=0)
    points = []
    with Progress("untrained-block", len(norms), progress, unit="norms") as shown:
        for norm in norms:
            points.append(_point(block, x + norm * direction, norm, size.heads))
            shown.advance(1)
    return UntrainedBlockReport(tuple(points), {**asdict(size), "seed": seed, "init_std": _STD})


def _check_norms(norms: Sequence[float]) -> list[float]:
    bad = [norm for norm in norms if not 0 <= norm < math.inf]
    if bad or not norms:
        found = f"bias norm {bad[0]}" if bad else "no bias norm"
        raise InputError(f"{found} was given; pass finite norms, 0 or more")
    return sorted({float(norm) for norm in norms})


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return _STD * torch.randn(*shape, generator=generator)


def _bert_block(size: BlockSize, generator: torch.Generator) -> nn.TransformerEncoderLayer:
    block = nn.TransformerEncoderLayer(
        size.dim,
        size.heads,
        4 * size.dim,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=_LAYER_NORM_EPS,
        batch_first=True,
    ).eval()
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if parameter.ndim == 2:
                parameter.copy_(_normal(generator, *parameter.shape))
            else:
                parameter.fill_(float("norm" in name and name.endswith("weight")))
    return block


@torch.no_grad()
def _point(block: nn.TransformerEncoderLayer, x: Tensor, norm: float, heads: int) -> BiasPoint:
    before, behind = LayerState(x.shape[2], gram=False), LayerState(x.shape[2], gram=False)
    attention = []
    # One sequence at a time: all logits together are the largest thing here.
    for sequence in x[:, None]:
        before.update(sequence)
        behind.update(block(sequence))
        attention.append(_attention(block, sequence, heads))
    low, high, mean, var, largest, smallest = torch.stack(attention).unbind(dim=1)
    entering, leaving = before.compute().metrics, behind.compute().metrics
    return BiasPoint(
        bias_norm=norm,
        norm_in=entering["mean_norm"],
        norm_out=leaving["mean_norm"],
        cosine_in=entering["mean_cosine"],
        cosine_out=leaving["mean_cosine"],
        logit_mean=float(mean.mean()),
        logit_std=float((var.mean() + mean.var(correction=0)).sqrt()),
        logit_min=float(low.min()),
        logit_max=float(high.max()),
        softmax_max=float(largest.mean()),
        softmax_min=float(smallest.mean()),
    )


def _attention(block: nn.TransformerEncoderLayer, x: Tensor, heads: int) -> Tensor:
    """Of the logits of one sequence min, max, mean, variance; mean largest, smallest of softmax."""
    weight = block.self_attn.in_proj_weight
    queries, keys = (
        (x[0] @ part.T).unflatten(1, (heads, -1)).transpose(0, 1) for part in weight.chunk(3)[:2]
    )
    logits = queries @ keys.mT / math.sqrt(queries.shape[-1])
    rows = logits.softmax(dim=-1)
    numbers = [logits.min(), logits.max(), logits.mean(dtype=torch.float64)]
    numbers.append(logits.double().var(correction=0))
    numbers += [rows.amax(dim=-1).mean(), rows.amin(dim=-1).mean()]
    return torch.stack([number.double() for number in numbers])
