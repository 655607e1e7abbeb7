"""Live capture: the states of a model's layers, filled while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import torch

from aniso.dumps import DumpWriter
from aniso.errors import InputError
from aniso.models.compiled import eager, trace_again, uncompiled
from aniso.models.hook_points import hook_points
from aniso.models.inputs import Groups, TokenFilter, device_of, special_token_ids
from aniso.models.layer_sums import LayerSums, StateKind
from aniso.models.memory import MemoryPlan, memory_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path
    from types import TracebackType

    from torch import Tensor, nn

    from aniso._names import Selection
    from aniso.dumps import RowWriter
    from aniso.metrics import GroupCosine, LayerMetrics
    from aniso.models.sites import HookPoint
    from aniso.state import LayerState, SketchState


@dataclass(frozen=True)
class CaptureOptions:
    """What `capture` reads and keeps; every attribute is its argument of that name.

    Raises:
        InputError: a multiple that is not above 1, or groups of no such kind.
    """

    layers: Selection = None
    sites: str | Iterable[str] = "residual"
    exclude_special_tokens: bool = False
    exclude_token_ids: tuple[int, ...] = ()
    max_norm_multiple: float | None = None
    gram: bool = True
    groups: Groups | None = None
    memory: str | int | None = None

    def __post_init__(self) -> None:
        multiple = self.max_norm_multiple
        if multiple is not None and not multiple > 1:
            raise InputError(f"max_norm_multiple is {multiple}; it is a number above 1")
        if self.groups is not None and self.groups not in get_args(Groups):
            raise InputError(
                f"groups is {self.groups!r}; use 'token_ids', 'sentence' or 'position'"
            )

    def excluded(self, model: nn.Module, tokenizer: Any) -> list[int]:
        """Ids of the tokens that are left out."""
        special = special_token_ids(model, tokenizer) if self.exclude_special_tokens else []
        return [*self.exclude_token_ids, *special]

    def start(self, model: nn.Module, tokenizer: Any = None) -> Capture:
        """The capture of a model, not entered yet; raises as `capture` does."""
        model = uncompiled(model)
        excluded = self.excluded(model, tokenizer)
        points = hook_points(model, self.layers, self.sites)
        kind = StateKind(
            gram=self.gram,
            groups=self.groups is not None,
            excludes=bool(excluded),
            max_norm_multiple=self.max_norm_multiple,
        )
        plan = memory_plan(points, kind, self.memory)
        return Capture(model, points, TokenFilter(model, excluded), plan, self.groups)


class Capture:
    """A running capture; see `capture`.

    Attributes:
        layers: Names of the captured layers, in order of execution.
        points: The hook points behind them.
        memory: What their states take, and which they are; its text says it in a line.
    """

    def __init__(
        self,
        model: nn.Module,
        points: list[HookPoint],
        tokens: TokenFilter,
        memory: MemoryPlan,
        groups: Groups | None = None,
    ) -> None:
        self.layers = tuple(point.name for point in points)
        self.points, self.memory = points, memory
        self._model, self._tokens, self._groups = model, tokens, groups
        self._sums: dict[str, list[LayerSums]] = {point.name: [] for point in points}
        self._writer: RowWriter | None = None
        self._handles: list[Any] = []
        # Calls begun and completed: tensors, because compiled code that reads a number of Python
        # is compiled again when it changes.
        with torch.inference_mode(False):
            self._begun = torch.zeros(1, dtype=torch.int64, device=device_of(model))
            self._completed = torch.zeros_like(self._begun)
        self._running = False
        self._new_sums: Callable[..., LayerSums] = self._make

    def save_to(self, folder: str | Path) -> None:
        """Also writes every captured row to a dump in this folder."""
        self.write_to(DumpWriter(folder, self.layers))

    def write_to(self, writer: RowWriter) -> None:
        """Also hands every captured row to a writer."""
        self._writer = writer

    @property
    def states(self) -> dict[str, LayerState]:
        """One LayerState per layer that has run: the rows that count, of all devices.

        Of the calls so far: after further ones, ask again.
        """
        return {name: sums.state for name, sums in self._by_layer().items()}

    @property
    def left_out(self) -> dict[str, LayerState]:
        """One LayerState per layer that has run: the rows that rules left out, none without."""
        found = ((name, sums.left_out) for name, sums in self._by_layer().items())
        return {name: state for name, state in found if state is not None}

    @property
    def sketches(self) -> dict[str, SketchState]:
        """One SketchState per layer that has run, where `memory` had no room for Grams."""
        found = ((name, sums.sketch) for name, sums in self._by_layer().items())
        return {name: state for name, state in found if state is not None}

    def compute(self) -> dict[str, LayerMetrics]:
        """Metrics of every layer, by name, in order of execution.

        Where rules left rows out, `metrics_of_all` has the metrics with them.

        Raises:
            InputError: the model was not called, a call raised, or a layer did not run.
        """
        self.finished()
        return {name: sums.compute() for name, sums in self._by_layer().items()}

    def group_cosine(self) -> dict[str, GroupCosine]:
        """Cosines within and between the groups of every layer.

        Raises:
            InputError: as `compute`, or the capture has no groups.
        """
        return {name: state.group_cosine() for name, state in self.finished().items()}

    def finished(self) -> dict[str, LayerState]:
        """The states in order of execution; raises as `compute` does."""
        begun, raised = int(self._begun), int(self._begun - self._completed)
        if not begun:
            raise InputError("the model was not called inside the capture; call it first")
        if raised:
            raise InputError(
                f"{raised} of {begun} calls of the model raised an error midway: their tokens are "
                "in some layers only; capture again without them"
            )
        states = self.states
        silent = [name for name in self.layers if name not in states]
        if silent:
            raise InputError(
                f"layer {silent[0]} did not run in {begun} calls of the model; capture layers "
                "that run"
            )
        return states

    def __enter__(self) -> Capture:
        for point in self.points:
            if point.width is not None:
                self._make(point.name, point.width, device_of(point.module))
        before: Any = self._before_model
        read: Any = self._read
        self._new_sums = eager(self._make)
        if not self.memory.kind.static or self._writer is not None:
            before, read = eager(before), eager(read)
        model = self._model
        self._handles = [model.register_forward_pre_hook(before, with_kwargs=True)]
        self._handles += [self._hook(point, read) for point in self.points]
        self._handles.append(model.register_forward_hook(self._after_model))
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
        self._tokens.forget()
        if self._writer is None:
            return
        if error is None:
            self._writer.finish()
        else:
            self._writer.abandon()

    def _hook(self, point: HookPoint, read: Any) -> Any:
        if point.side == "output":
            return point.module.register_forward_hook(partial(_output, read, point))
        hook = partial(_input, read, point)
        return point.module.register_forward_pre_hook(hook, with_kwargs=True)

    def _before_model(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._tokens.read(args, kwargs)
        self._begun.add_(1)
        self._running = True
        if self._groups == "sentence":
            self._tokens.number_sentences()

    def _after_model(self, module: nn.Module, args: Any, output: Any) -> None:
        self._completed.add_(1)
        self._running = False
        self._tokens.forget()

    def _read(self, point: HookPoint, value: Any) -> None:
        """Adds one layer's hidden states to its sums; the body of every hook."""
        if not self._running:
            # The backward pass computes a checkpointed block again: its rows are counted already.
            return
        hidden = point.read(value).detach()
        mask = self._tokens.mask(hidden, point.name)
        excluded = self._tokens.excluded(hidden, point.name)
        groups = None
        if self._groups is not None:
            groups = self._tokens.groups(self._groups, hidden, point.name)
        counted = self._sums_of(point.name, hidden).add(hidden, mask, excluded, groups)
        if self._writer is not None:
            rows = hidden.flatten(0, -2) if counted is None else hidden[counted]
            self._writer.append(point.name, rows)

    def _sums_of(self, name: str, hidden: Tensor) -> LayerSums:
        for sums in self._sums[name]:
            if sums.fits(hidden):
                return sums
        return self._new_sums(name, hidden.shape[-1], hidden.device)

    def _make(self, name: str, dim: int, device: torch.device) -> LayerSums:
        """New sums of a layer, in place of those of another width that never ran."""
        ran = [sums for sums in self._sums[name] if sums.ran]
        for other in self._sums[name]:
            if other.dim == dim and other.device == device:
                return other
        if ran and ran[0].dim != dim:
            raise InputError(
                f"layer {name} gives {dim} columns, and gave {ran[0].dim} before; capture "
                "layers of one width"
            )
        sums = LayerSums(dim, self.memory.kind, device)
        self._sums[name] = [*ran, sums]
        return sums

    def _by_layer(self) -> dict[str, LayerSums]:
        """The sums of every layer that has run, of all devices."""
        found = {}
        for name, parts in self._sums.items():
            ran = [sums for sums in parts if sums.ran]
            if ran:
                found[name] = ran[0]
                for other in ran[1:]:
                    found[name] = found[name].merge(other)
        return found


def _input(read: Any, point: HookPoint, module: nn.Module, args: Any, kwargs: Any) -> None:
    read(point, args[0] if args else kwargs["hidden_states"])


def _output(read: Any, point: HookPoint, module: nn.Module, args: Any, output: Any) -> None:
    read(point, output)


def capture(
    model: nn.Module,
    layers: Selection = None,
    *,
    sites: str | Iterable[str] = "residual",
    exclude_special_tokens: bool = False,
    exclude_token_ids: Iterable[int] = (),
    max_norm_multiple: float | None = None,
    tokenizer: Any = None,
    gram: bool = True,
    groups: Groups | None = None,
    memory: str | int | None = None,
    save: str | Path | None = None,
) -> Capture:
    """Captures the statistics of a model's layers while it runs; memory does not grow with tokens.

    Every call of the model inside the `with` block adds its tokens to one `LayerState` per layer.
    The attention mask of the call decides which tokens count, wherever the padding lies. What a
    block computes again in the backward pass (gradient checkpointing) counts once.

    The hooks are part of what `torch.compile` compiles, without a graph break (`fullgraph=True`):
    code compiled before is dropped on entering, and made again around them. Graphs break around
    the hooks with `groups`, `save` or a sketch, for masks of audio samples, and at the first call
    of a layer whose width no projection or norm inside it tells. Compiled by the "eager" backend,
    which is for debugging, checkpointed blocks count twice.

    Args:
        model: Any PyTorch model. Hugging Face models need no further arguments.
        layers: Module paths, globs, positions (0 is the embedding layer), or names of
            TransformerLens such as blocks.8.hook_mlp_out. Default: the embedding layer and every
            block.
        sites: What is read of every layer: "residual" (what the block gives), "attention" and
            "mlp" (what these add to it), "queries" and "keys" (a layer of its own per head).
        exclude_special_tokens: Leave out [CLS], [SEP] and the like.
        exclude_token_ids: Further token ids to leave out.
        max_norm_multiple: Leave out outliers, such as attention sinks: rows whose norm is over
            this multiple of the median norm of the layer's other rows in the same call. What a
            call leaves out depends on no other call, so captures of parts of the calls add up.
        tokenizer: Where the special tokens come from. Default: the model's own.
        gram: Keep second moments (variance, spectra).
        groups: Keep sums per "token_ids", "sentence" or "position" too, for `group_cosine`.
        memory: What the states may take on each device, in bytes or as "4GiB". Where Grams do not
            fit, `sketches` keeps the largest SketchState that does, or only moments are kept;
            `Capture.memory` says what it is to be, before the run.
        save: Folder of a dump to write the rows that count to as well.

    Rows that a rule leaves out are counted, and kept in sums of their own: all metrics are given
    without them, and with them as `LayerMetrics.metrics_of_all`.

    Returns:
        Capture: a context manager; afterwards `compute()` gives {layer: LayerMetrics}.

    Raises:
        InputError: no such layer or site, an unusable mask or output, no tokenizer, memory that
            does not suffice, or `save` not writable.

    Example:
        >>> with capture(model, layers="encoder.layer.*") as run:  # doctest: +SKIP
        ...     model(**batch)
        >>> run.compute()["encoder.layer.0"].metrics["mean_cosine"]  # doctest: +SKIP
    """
    options = CaptureOptions(
        layers=layers,
        sites=sites,
        exclude_special_tokens=exclude_special_tokens,
        exclude_token_ids=tuple(exclude_token_ids),
        max_norm_multiple=max_norm_multiple,
        gram=gram,
        groups=groups,
        memory=memory,
    )
    run = options.start(model, tokenizer)
    if save is not None:
        run.save_to(save)
    return run
