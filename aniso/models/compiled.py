"""Models under torch.compile: their hooks run only if they are there when it traces."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


def uncompiled(model: nn.Module) -> nn.Module:
    """The model that torch.compile wrapped; the model itself where it did not."""
    inner: nn.Module = getattr(model, "_orig_mod", model)
    return inner


def trace_again() -> None:
    """Drops the compiled code of the process, so that the next calls see today's hooks.

    From now on code is made for modules with hooks, or for such without: one model's code served
    any other of its class.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None:
        dynamo.config.skip_nnmodule_hook_guards = False
        dynamo.reset()


def eager(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, left out of compiled code without a warning."""
    dynamo = sys.modules.get("torch._dynamo")
    return function if dynamo is None else dynamo.disable(function)
