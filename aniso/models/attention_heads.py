"""Where a model's queries and keys leave their projections, and how heads divide them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aniso._names import Selection, natural_key, select_names
from aniso.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

# Names of the two projections within an attention module: BERT and ViT, Llama and speech models,
# T5, DistilBERT.
_SPLIT = (("query", "key"), ("q_proj", "k_proj"), ("q", "k"), ("q_lin", "k_lin"))
_FUSED = "c_attn"  # GPT-2: queries, keys and values side by side.


@dataclass(frozen=True)
class AttentionHeads:
    """One attention module and its projections.

    Attributes:
        name: Module path.
        query: Module that gives queries [batch, token, heads · d_h], then more if it is `key` too.
        key: Module that gives keys; `query` itself where they are fused.
        dim: d_h, of one head.
        scale: What the model multiplies qᵀk by; 1/√d_h for most, 1 for T5.
    """

    name: str
    query: nn.Module
    key: nn.Module
    dim: int
    scale: float

    def queries(self, output: Tensor) -> Tensor:
        """Queries [batch, heads, token, d_h] in the output of `query`."""
        return self._heads(output.chunk(3, dim=-1)[0] if self.fused else output)

    def keys(self, output: Tensor) -> Tensor:
        """Keys [batch, key heads, token, d_h] in the output of `key`."""
        return self._heads(output.chunk(3, dim=-1)[1] if self.fused else output)

    @property
    def fused(self) -> bool:
        """Whether one projection gives queries, keys and values side by side."""
        return self.query is self.key

    def _heads(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.dim))
        return heads.transpose(1, 2)


def attention_heads(model: nn.Module, layers: Selection = None) -> list[AttentionHeads]:
    """The chosen attention modules, in the order of the model.

    Args:
        model: A model whose attention has projections called query and key, q_proj and k_proj,
            q and k, q_lin and k_lin, or c_attn (GPT-2).
        layers: Module paths of attention modules, globs, or positions. Default: all.

    Raises:
        InputError: no such attention module, or heads of unknown size.
    """
    found = {
        name: _heads_of(model, name, module, *projections)
        for name, module in model.named_modules()
        if (projections := _projections(module)) is not None
    }
    if not found:
        raise InputError(
            f"{type(model).__name__} has no attention with projections for queries and keys "
            "(query, q_proj, q, q_lin or c_attn); pass another model"
        )
    names = list(found)
    chosen = select_names(layers, names, sorted(names, key=natural_key))
    return [found[name] for name in chosen]


def _projections(module: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    children = dict(module.named_children())
    for query, key in _SPLIT:
        if query in children and key in children:
            return children[query], children[key]
    fused = children.get(_FUSED)
    return None if fused is None else (fused, fused)


def _heads_of(
    model: nn.Module, name: str, module: nn.Module, query: nn.Module, key: nn.Module
) -> AttentionHeads:
    dim = _first(module, "head_dim", "attention_head_size", "key_value_proj_dim")
    if dim is None:
        config: Any = getattr(model, "config", None)
        width, heads = (_first(config, n) for n in ("hidden_size", "num_attention_heads"))
        if not width or not heads:
            raise InputError(f"the heads of {name} are of unknown size; leave it out with layers=…")
        dim = width // heads
    scale = getattr(module, "scaling", None)
    return AttentionHeads(
        name, query, key, dim, scale if isinstance(scale, float) else float(dim) ** -0.5
    )


def _first(owner: Any, *names: str) -> int | None:
    values = (getattr(owner, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)
