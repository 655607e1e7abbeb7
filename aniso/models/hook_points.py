"""Where a model's hidden states can be read: its embedding layer, its blocks, and inside them."""

from __future__ import annotations

import re
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import groupby
from typing import TYPE_CHECKING

from torch import nn

from aniso._names import Selection, natural_key, select_names
from aniso.errors import InputError
from aniso.models.sites import SITES, HookPoint, check_sites, points_of_block

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aniso.models.sites import Site

EMBEDDINGS = "embeddings"
# What TransformerLens calls the sites of block N.
_ALIASES: dict[str, Site] = {
    "attn.hook_q": "queries",
    "attn.hook_k": "keys",
    "hook_attn_out": "attention",
    "hook_mlp_out": "mlp",
    "hook_resid_post": "residual",
}


def hook_points(
    model: nn.Module, layers: Selection = None, sites: str | Iterable[str] = "residual"
) -> list[HookPoint]:
    """The chosen hook points, in order of execution.

    The layers are the input of the first block, which is the output of the embedding layer with
    positions, norm and scale applied ("embeddings"), and the blocks. Their site "residual" is what
    a block gives: for a Hugging Face model the entries of `hidden_states`, but for the last, which
    some models pass through their final norm. "attention" and "mlp" are what these add to the
    residual stream of a block, before any norm or dropout; "queries" and "keys" are those of each
    head of its self-attention, before rotary embeddings and norms.

    Args:
        model: Any PyTorch model.
        layers: Module paths, globs, positions among the layers, or names of TransformerLens such
            as blocks.8.hook_attn_out. Default: all layers.
        sites: Sites of each layer. A module that is named is read where it is.

    Raises:
        InputError: no blocks were found and no layers named, a name matches nothing, or a block
            has no such site.
    """
    wanted = check_sites(sites)
    residual = {point.name: point for point in _residual_points(model)}
    if not residual and layers is None:
        raise InputError(
            f"{type(model).__name__} has no list of blocks; name the modules with layers=…"
        )
    others = _other_points(model, residual) if layers is not None or len(wanted) > 1 else {}
    known = sorted(others, key=natural_key)
    chosen = select_names(_without_aliases(layers, residual, others), list(residual), known)
    points = []
    for name in chosen:
        if name in residual:
            points += _of_layer(model, residual[name], wanted, named=layers is not None)
        else:
            points.append(others[name])
    return points


def _of_layer(
    model: nn.Module, layer: HookPoint, wanted: tuple[Site, ...], *, named: bool
) -> list[HookPoint]:
    """The points of one layer; the embeddings have the residual site alone."""
    if layer.side == "input":
        if "residual" not in wanted and named:
            raise InputError(f"{layer.name} has no {wanted[0]}, only blocks have; name those")
        return [layer] if "residual" in wanted else []
    points = []
    for site in wanted:
        found = points_of_block(model, layer, site)
        if not found:
            raise InputError(
                f"no {site} was found in {layer.name}; leave that site out, or name the module "
                "with layers=…"
            )
        points += found
    return points


def _other_points(model: nn.Module, residual: dict[str, HookPoint]) -> dict[str, HookPoint]:
    """Every module, and every site of every block, that is no layer itself."""
    blocks = [point for point in residual.values() if point.side == "output"]
    found = {}
    for path, module in model.named_modules():
        inside = next((b for b in blocks if path.startswith(f"{b.name}.")), None)
        layer, pre_norm = (None, False) if inside is None else (inside.layer, inside.pre_norm)
        found[path] = HookPoint(path, module, site="module", layer=layer, pre_norm=pre_norm)
    for block in blocks:
        for site in SITES:
            found |= {point.name: point for point in points_of_block(model, block, site)}
    return {name: point for name, point in found.items() if name and name not in residual}


def _without_aliases(
    layers: Selection, residual: dict[str, HookPoint], others: dict[str, HookPoint]
) -> Selection:
    """The selection with names of TransformerLens replaced; a model's own names come first."""
    if layers is None:
        return None
    items = [layers] if isinstance(layers, str | int) else list(layers)
    if not any("hook_" in str(item) for item in items):
        return items
    own, aliases = [*residual, *others], _aliases(residual, others)
    found: list[str | int] = []
    for item in items:
        named = [
            n for alias, names in aliases.items() if fnmatchcase(alias, str(item)) for n in names
        ]
        taken = any(fnmatchcase(name, str(item)) for name in own)
        found += [item] if taken or not named else named
    return found


def _aliases(residual: dict[str, HookPoint], others: dict[str, HookPoint]) -> dict[str, list[str]]:
    """{name in TransformerLens: our names}."""
    layers = list(residual.values())
    blocks = [point for point in layers if point.side == "output"]
    found = {"hook_embed": [point.name for point in layers[:1]]}
    for number, block in enumerate(blocks):
        before = layers[layers.index(block) - 1]
        found[f"blocks.{number}.hook_resid_pre"] = [before.name]
        inside = [p for p in (block, *others.values()) if p.layer == block.layer]
        for alias, site in _ALIASES.items():
            found[f"blocks.{number}.{alias}"] = [p.name for p in inside if p.site == site]
    return {alias: names for alias, names in found.items() if names}


def _residual_points(model: nn.Module) -> Iterator[HookPoint]:
    """Per stack of blocks, the first one's input and every one's output."""
    blocks = _recorded_blocks(model) or _longest_list(model)
    layer = 0
    for index, (stack, members) in enumerate(groupby(blocks, lambda b: b[0].rpartition(".")[0])):
        pre_norm = _has_final_norm(model, stack)
        for position, (path, block) in enumerate(members):
            point = HookPoint(path, block, layer=layer, pre_norm=pre_norm)
            if position == 0:
                name = f"{stack}.{EMBEDDINGS}" if index else EMBEDDINGS
                yield replace(point, name=name, side="input")
                layer += 1
            yield replace(point, layer=layer)
            layer += 1


def _has_final_norm(model: nn.Module, stack: str) -> bool:
    """Whether a norm beside a list of blocks is declared behind it, or called final."""
    owner, _, name = stack.rpartition(".")
    children = [child for child, _ in model.get_submodule(owner).named_children()]
    behind = children[children.index(name) + 1 :] if name in children else []
    norms = [child for child in children if re.search(r"norm|ln_f", child, re.IGNORECASE)]
    return any(child in behind or "final" in child for child in norms)


def _recorded_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Blocks by the class a transformers model declares as the source of its hidden states."""
    classes: set[type[nn.Module]] = set()
    for module in model.modules():
        declared = (getattr(module, "_can_record_outputs", None) or {}).get("hidden_states", ())
        for item in declared if isinstance(declared, list | tuple) else (declared,):
            target = getattr(item, "target_class", item)
            if isinstance(target, type):
                classes.add(target)
    return [(path, m) for path, m in model.named_modules() if path and type(m) in classes]


def _longest_list(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The outermost ModuleList or Sequential of equal modules that holds the most parameters."""
    best: list[tuple[str, nn.Module]] = []
    most = 0
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        size = sum(p.numel() for p in module.parameters())
        if len({type(child) for child in module}) == 1 and size > most:
            prefix = f"{path}." if path else ""
            best = [(f"{prefix}{name}", child) for name, child in module.named_children()]
            most = size
    return best
