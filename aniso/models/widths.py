"""How wide hidden states are before and behind a module, as far as its parameters tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


def width(module: nn.Module, side: Literal["input", "output"]) -> int | None:
    """Columns that the first projection or norm inside takes, or the last one gives.

    A guess, right for blocks that add to what they receive; None where there is none of them.
    """
    inside = [w for m in module.modules() if (w := _widths(m)) is not None]
    if not inside:
        return None
    return inside[0][0] if side == "input" else inside[-1][1]


def _widths(module: nn.Module) -> tuple[int, int] | None:
    """What a single module takes and gives."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.Embedding):
        return module.embedding_dim, module.embedding_dim
    weight: Tensor | None = module._parameters.get("weight")
    if weight is None:
        return None
    if type(module).__name__ == "Conv1D" and weight.ndim == 2:  # GPT-2's linear layer.
        return weight.shape[0], weight.shape[1]
    if weight.ndim == 1 and "Norm" in type(module).__name__:
        return weight.shape[0], weight.shape[0]
    return None
