"""The hidden states in what a module takes or gives."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def hidden_states(name: str, value: Any) -> Tensor:
    """The tensor in a module's output: itself, or the first entry of a tuple or ModelOutput.

    Raises:
        InputError: there is no tensor of two or three dimensions at that place.
    """
    if isinstance(value, dict):
        value = next(iter(value.values()))
    elif isinstance(value, tuple | list) and value:
        value = value[0]
    if not isinstance(value, torch.Tensor) or value.ndim not in (2, 3):
        what = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(
            f"layer {name} gives {what}, not hidden states [batch, token, d]; choose other layers"
        )
    return value


def with_hidden_states(value: Any, hidden: Tensor) -> Any:
    """A copy of a module's output with other hidden states at their place."""
    if isinstance(value, dict):
        replaced = copy.copy(value)
        replaced[next(iter(value))] = hidden
        return replaced
    if isinstance(value, tuple | list):
        rest = [hidden, *value[1:]]
        return type(value)(*rest) if hasattr(value, "_fields") else type(value)(rest)
    return hidden
