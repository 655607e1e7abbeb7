"""Where a model's hidden states can be read: its embedding layer and its blocks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from torch import nn

from aniso._names import Selection, natural_key, select_names
from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class HookPoint:
    """One place to read hidden states.

    Attributes:
        name: Module path, or "embeddings" for what the first block receives.
        module: The module that is hooked.
        site: Whether its input or its output is read.
    """

    name: str
    module: nn.Module
    site: Literal["input", "output"]


def hook_points(model: nn.Module, layers: Selection = None) -> list[HookPoint]:
    """The chosen hook points, in order of execution.

    By default the input of the first block, which is the output of the embedding layer with
    positions, norm and scale applied ("embeddings"), and the output of every block: for a Hugging
    Face model the entries of `hidden_states`, but for the last, which some models pass through
    their final norm.

    Args:
        model: Any PyTorch model.
        layers: Module paths, globs, or positions in the default list. Default: that list.

    Raises:
        InputError: no blocks were found and no layers named, or a name matches nothing.
    """
    default = {point.name: point for point in _default_points(model)}
    if not default and layers is None:
        raise InputError(
            f"{type(model).__name__} has no list of blocks; name the modules with layers=…"
        )
    modules = {
        path: HookPoint(path, module, "output") for path, module in model.named_modules() if path
    }
    known = sorted(modules, key=natural_key)
    points = modules | default
    return [points[name] for name in select_names(layers, list(default), known)]


def _default_points(model: nn.Module) -> Iterator[HookPoint]:
    """Per stack of blocks, the first one's input and every one's output."""
    blocks = _recorded_blocks(model) or _longest_list(model)
    for index, (stack, members) in enumerate(groupby(blocks, lambda b: b[0].rpartition(".")[0])):
        for position, (path, block) in enumerate(members):
            if position == 0:
                name = f"{stack}.{EMBEDDINGS}" if index else EMBEDDINGS
                yield HookPoint(name, block, "input")
            yield HookPoint(path, block, "output")


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
