"""Sites of a block: its output, what attention and MLP add to it, queries and keys per head."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from aniso.errors import InputError
from aniso.models.attention_heads import attention_heads
from aniso.models.hidden_states import hidden_states
from aniso.models.widths import width

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from aniso.models.attention_heads import AttentionHeads

Site = Literal["queries", "keys", "attention", "mlp", "residual"]
SITES: tuple[Site, ...] = get_args(Site)
"""In order of execution."""

# Where attention leaves its output projection, and the MLP its own: paths within a block.
_ATTENTION = re.compile(
    r"(.*\.)?\w*[aA]tt\w*(\.output)?\.(o_proj|out_proj|c_proj|out_lin|dense|proj|o)"
)
_MLP = re.compile(r"(.*\.)?(mlp|feed_forward|ffn|block_sparse_moe|DenseReluDense)")
_MLP_BARE = re.compile(r"output\.dense|fc2|linear2")


@dataclass(frozen=True)
class HookPoint:
    """One place to read hidden states.

    Attributes:
        name: Module path, "embeddings" for what the first block receives, or, of one head, the
            path of its attention module with .queries.N or .keys.N.
        module: The module that is hooked.
        side: Whether its input or its output is read.
        site: One of `SITES`; "module" for one that is none of them.
        layer: Its place among embeddings (0) and blocks (1, …); None outside of the blocks.
        pre_norm: Whether a final norm of the model follows behind the blocks.
        columns: First and last + 1 of the columns that are read; None reads all.
    """

    name: str
    module: nn.Module
    side: Literal["input", "output"] = "output"
    site: str = "residual"
    layer: int | None = None
    pre_norm: bool = False
    columns: tuple[int, int] | None = None

    @property
    def width(self) -> int | None:
        """Columns of its hidden states; None where the module does not tell."""
        if self.columns is not None:
            return self.columns[1] - self.columns[0]
        return width(self.module, self.side)

    def read(self, value: Any) -> Tensor:
        """The hidden states in what the module takes or gives.

        Raises:
            InputError: there are none.
        """
        hidden = hidden_states(self.name, value)
        return hidden if self.columns is None else hidden[..., slice(*self.columns)]

    def facts(self) -> dict[str, Any]:
        """Layer, site and pre_norm, as results state them."""
        return {"layer": self.layer, "site": self.site, "pre_norm": self.pre_norm}


def check_sites(sites: str | Iterable[str]) -> tuple[Site, ...]:
    """The sites in order of execution.

    Raises:
        InputError: none, or one that is not in `SITES`.
    """
    wanted = [sites] if isinstance(sites, str) else list(sites)
    for site in wanted:
        if site not in SITES:
            raise InputError(f"there is no site {site!r}; the sites are {', '.join(SITES)}")
    if not wanted:
        raise InputError(f"no site was named; the sites are {', '.join(SITES)}")
    return tuple(site for site in SITES if site in wanted)


def points_of_block(model: nn.Module, block: HookPoint, site: Site) -> list[HookPoint]:
    """The hook points of one site of a block; none where it has no such module."""
    if site == "residual":
        return [block]
    if site in ("queries", "keys"):
        return _head_points(model, block, site)
    inside = [path for path, _ in block.module.named_modules() if path]
    patterns = (_ATTENTION,) if site == "attention" else (_MLP, _MLP_BARE)
    for pattern in patterns:
        found = next((path for path in inside if pattern.fullmatch(path)), None)
        if found is not None:
            module = block.module.get_submodule(found)
            return [replace(block, name=f"{block.name}.{found}", module=module, site=site)]
    return []


def _head_points(model: nn.Module, block: HookPoint, site: Site) -> list[HookPoint]:
    """One per head of the block's first attention, which is its self-attention."""
    try:
        heads = attention_heads(model, f"{block.name}.*")[0]
    except InputError:
        return []
    module, first, last = _columns(heads, site)
    return [
        replace(
            block,
            name=f"{heads.name}.{site}.{head}",
            module=module,
            site=site,
            columns=(start, start + heads.dim),
        )
        for head, start in enumerate(range(first, last, heads.dim))
    ]


def _columns(heads: AttentionHeads, site: Site) -> tuple[nn.Module, int, int]:
    """The projection of queries or keys, and which columns of its output they are."""
    module = heads.query if site == "queries" else heads.key
    columns = width(module, "output")
    if columns is None:
        raise InputError(f"the {site} of {heads.name} are of unknown width; leave them out")
    if not heads.fused:
        return module, 0, columns
    first = 0 if site == "queries" else columns // 3
    return module, first, first + columns // 3
