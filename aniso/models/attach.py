"""Transforms of hidden states on a live model: attached by hooks, removable."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from aniso.errors import InputError
from aniso.models.compiled import trace_again, uncompiled
from aniso.models.hidden_states import hidden_states, with_hidden_states
from aniso.models.hook_points import hook_points
from aniso.models.inputs import TokenFilter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from torch import Tensor

    from aniso._names import Selection
    from aniso.models.sites import HookPoint

Side = Literal["input", "output"]
_REGISTERED = "aniso_transform"


class Attachment:
    """A transform on a model; see `attach`. Leaving it as a context manager removes it.

    Attributes:
        layers: Names of the layers whose hidden states are transformed, in order of execution.
        transform: What is applied to them.
    """

    def __init__(
        self, model: nn.Module, points: list[HookPoint], transform: Callable[..., Tensor]
    ) -> None:
        self.layers = tuple(point.name for point in points)
        self.transform = transform
        self._model = model
        self._tokens = TokenFilter(model)
        self._handles: list[Any] = [
            model.register_forward_pre_hook(self._before_model, with_kwargs=True)
        ]
        for point in points:
            self._handles.append(self._hook(point))
        trace_again()

    def remove(self) -> None:
        """Takes the transform off the model, which is then as it was before; may be repeated."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if getattr(self._model, _REGISTERED, None) is self.transform:
            delattr(self._model, _REGISTERED)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the transform, for an optimizer; none when it is no nn.Module."""
        if isinstance(self.transform, nn.Module):
            yield from self.transform.parameters()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def _hook(self, point: HookPoint) -> Any:
        if point.side == "output":
            return point.module.register_forward_hook(partial(self._output, point.name))
        hook = partial(self._input, point.name)
        return point.module.register_forward_pre_hook(hook, with_kwargs=True)

    def _before_model(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._tokens.read(args, kwargs)

    def _output(self, name: str, module: nn.Module, args: Any, output: Any) -> Any:
        return with_hidden_states(output, self._transformed(name, hidden_states(name, output)))

    def _input(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            hidden = self._transformed(name, hidden_states(name, args[0]))
            return (hidden, *args[1:]), kwargs
        hidden = self._transformed(name, hidden_states(name, kwargs["hidden_states"]))
        return args, {**kwargs, "hidden_states": hidden}

    def _transformed(self, name: str, hidden: Tensor) -> Tensor:
        try:
            return self._apply(name, hidden)
        except InputError as error:
            raise InputError(f"layer {name}: {error}") from error

    def _apply(self, name: str, hidden: Tensor) -> Tensor:
        mask, shape = self._tokens.mask(hidden, name), self._tokens.batch_shape(name)
        if mask is None or shape is None or mask.ndim == hidden.ndim - 1 == 2:
            return self.transform(hidden, mask=mask)
        # Hidden states without a batch dimension: every sequence is a matrix of its own.
        batch = hidden.reshape(*shape, hidden.shape[-1])
        mapped = self.transform(batch, mask=mask.reshape(shape))
        return mapped.reshape(hidden.shape)


def attach(
    model: nn.Module,
    layers: Selection,
    transform: Callable[..., Tensor],
    *,
    side: Side = "output",
    register: bool = False,
) -> Attachment:
    """Puts a transform on the hidden states of a model's layers, until it is removed.

    The attention mask of each call decides which tokens the transform sees, wherever the padding
    lies. A block of a decoder gives what precedes the final norm; name the norm's module for what
    follows it. With side="input" what a module receives is transformed: that of
    "encoder.layer.11.output.LayerNorm" is before the last norm of BERT, as in the paper.

    The model's parameters and state dict stay as they are: pass `handle.parameters()` to the
    optimizer as well. Code that `torch.compile` made in this process is dropped, and made again by
    the next calls: a model compiled before is transformed too. A module that is recomputed in the
    backward pass (gradient checkpointing around the hook) sees the mask of the last call: call
    backward before the model is called again.

    Args:
        model: Any PyTorch model, in training or evaluation.
        layers: Module paths, globs, or positions (0 is the embedding layer).
        transform: `transform(hidden [batch, token, d], mask=[batch, token] bool or None)`, such as
            `aniso.SoftDecay`; gives the same shape. One for all layers.
        side: Transform a layer's output or its input. "embeddings" is always what the first
            block receives.
        register: Make the transform a submodule, `aniso_transform`: its parameters are then the
            model's, in its state dict, synchronised under DistributedDataParallel, moved by `to`.

    Returns:
        Attachment: `.remove()`, `.parameters()`; a context manager.

    Raises:
        InputError: no such layer, a single head, an unknown side, or nothing to register. When the
            model runs: an unusable mask or output.

    Reference: Yan et al., "Addressing Token Uniformity in Transformers via Singular Value
    Transformation", UAI 2022.

    Example:
        >>> with attach(model, "encoder.layer.5", aniso.SoftDecay(-0.6)):  # doctest: +SKIP
        ...     vectors = model(**batch).last_hidden_state
    """
    if side not in get_args(Side):
        raise InputError(f"side is {side!r}; use 'output' or 'input'")
    model = uncompiled(model)
    points = hook_points(model, layers)
    for point in points:
        if point.columns is not None:
            raise InputError(f"{point.name} is one head; attach transforms what a module gives")
    if side == "input":
        points = [replace(point, side="input") for point in points]
    if register:
        _register(model, transform)
    return Attachment(model, points, transform)


def _register(model: nn.Module, transform: Callable[..., Tensor]) -> None:
    if not isinstance(transform, nn.Module):
        raise InputError(f"a {type(transform).__name__} is no nn.Module; leave register=False")
    if hasattr(model, _REGISTERED):
        raise InputError(
            f"the model has a registered transform, {_REGISTERED}; remove that attachment first"
        )
    model.add_module(_REGISTERED, transform)
