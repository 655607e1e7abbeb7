"""Live capture: the states of a model's layers, filled while it runs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from aniso.dumps import DumpWriter
from aniso.errors import InputError
from aniso.models.compiled import eager, trace_again, uncompiled
from aniso.models.hidden_states import hidden_states
from aniso.models.hook_points import HookPoint, hook_points
from aniso.models.inputs import TokenFilter, special_token_ids
from aniso.state import LayerState

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import TracebackType

    from torch import nn

    from aniso._names import Selection
    from aniso.dumps import RowWriter
    from aniso.metrics import LayerMetrics


class Capture:
    """A running capture; see `capture`.

    Attributes:
        layers: Names of the captured layers, in order of execution.
        states: One LayerState per layer that has run.
    """

    def __init__(
        self, points: list[HookPoint], tokens: TokenFilter, model: nn.Module, *, gram: bool
    ) -> None:
        self.layers = tuple(point.name for point in points)
        self.states: dict[str, LayerState] = {}
        self._points, self._tokens, self._model, self._gram = points, tokens, model, gram
        self._writer: RowWriter | None = None
        self._handles: list[Any] = []
        self._calls = self._completed = 0
        self._fold = self._read

    def save_to(self, folder: str | Path) -> None:
        """Also writes every captured row to a dump in this folder."""
        self.write_to(DumpWriter(folder, self.layers))

    def write_to(self, writer: RowWriter) -> None:
        """Also hands every captured row to a writer."""
        self._writer = writer

    def compute(self) -> dict[str, LayerMetrics]:
        """Metrics of every layer, by name, in order of execution.

        Raises:
            InputError: the model was not called, a call raised, or a layer did not run.
        """
        return {name: state.compute() for name, state in self.finished().items()}

    def finished(self) -> dict[str, LayerState]:
        """The states in order of execution; raises as `compute` does."""
        if not self._calls:
            raise InputError("the model was not called inside the capture; call it first")
        if self._completed < self._calls:
            raise InputError(
                f"{self._calls - self._completed} of {self._calls} calls of the model raised an "
                "error midway: their tokens are in some layers only; capture again without them"
            )
        silent = [name for name in self.layers if name not in self.states]
        if silent:
            raise InputError(
                f"layer {silent[0]} did not run in {self._calls} calls of the model; capture "
                "layers that run"
            )
        return {name: self.states[name] for name in self.layers}

    def __enter__(self) -> Capture:
        self._fold = eager(self._read)
        self._handles = [
            self._model.register_forward_pre_hook(self._before_model, with_kwargs=True),
            self._model.register_forward_hook(self._after_model),
        ]
        for point in self._points:
            if point.site == "input":
                hook = partial(self._block_input, point.name)
                handle = point.module.register_forward_pre_hook(hook, with_kwargs=True)
            else:
                handle = point.module.register_forward_hook(partial(self._output, point.name))
            self._handles.append(handle)
        trace_again()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        if self._writer is not None and error is None:
            self._writer.flush()

    def _before_model(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._tokens.read(args, kwargs)
        self._calls += 1
        if self._writer is not None:
            self._writer.flush_if_full()

    def _after_model(self, module: nn.Module, args: Any, output: Any) -> None:
        self._completed += 1

    def _block_input(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._fold(name, args[0] if args else kwargs["hidden_states"])

    def _output(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        self._fold(name, output)

    def _read(self, name: str, value: Any) -> None:
        """Folds one layer's hidden states into its state; the body of every hook."""
        hidden = hidden_states(name, value)
        mask = self._tokens.mask(hidden, name)
        if name not in self.states:
            state = LayerState(hidden.shape[-1], gram=self._gram, device=hidden.device)
            self.states[name] = state
        self.states[name].update(hidden, mask)
        if self._writer is not None:
            rows = hidden.detach()
            self._writer.append(name, rows.flatten(0, -2) if mask is None else rows[mask])


def capture(
    model: nn.Module,
    layers: Selection = None,
    *,
    exclude_special_tokens: bool = False,
    exclude_token_ids: Iterable[int] = (),
    tokenizer: Any = None,
    gram: bool = True,
    save: str | Path | None = None,
) -> Capture:
    """Captures the statistics of a model's layers while it runs; memory does not grow with tokens.

    Every call of the model inside the `with` block adds its tokens to one `LayerState` per layer.
    The attention mask of the call decides which tokens count, wherever the padding lies. Code that
    `torch.compile` made in this process is dropped on entering, and made again around the hooks.

    Args:
        model: Any PyTorch model. Hugging Face models need no further arguments.
        layers: Module paths, globs, or positions (0 is the embedding layer). Default: the
            embedding layer and every block.
        exclude_special_tokens: Leave out [CLS], [SEP] and the like.
        exclude_token_ids: Further token ids to leave out.
        tokenizer: Where the special tokens come from. Default: the model's own.
        gram: Keep second moments (variance, spectra).
        save: Folder of a dump to write the rows to as well.

    Returns:
        Capture: a context manager; afterwards `compute()` gives {layer: LayerMetrics}.

    Raises:
        InputError: no such layer, an unusable mask or output, no tokenizer, or `save` not
            writable.

    Example:
        >>> with capture(model, layers="encoder.layer.*") as run:  # doctest: +SKIP
        ...     model(**batch)
        >>> run.compute()["encoder.layer.0"].metrics["mean_cosine"]  # doctest: +SKIP
    """
    model = uncompiled(model)
    excluded = list(exclude_token_ids)
    if exclude_special_tokens:
        excluded += special_token_ids(model, tokenizer)
    run = Capture(hook_points(model, layers), TokenFilter(model, excluded), model, gram=gram)
    if save is not None:
        run.save_to(save)
    return run
