"""Metrics of a model's layers while it is trained: every n steps, to files and trackers."""

from __future__ import annotations

import csv
import json
import math
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aniso.errors import InputError
from aniso.metrics import METRICS
from aniso.models import Capture, capture

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from torch import nn

    from aniso._names import Selection

    Values = dict[str, dict[str, float]]
    Sink = Callable[[int, Values], None]
    Target = str | Path | Sink

# Of the first moments alone: no Gram matrix is kept for these.
_FIRST_ORDER = {
    "mean_cosine",
    "rogue_share_1",
    "rogue_share_3",
    "rogue_share_10",
    "drift_norm",
    "mean_norm",
    "rms_norm",
    "relative_drift",
}


class MetricLogger:
    """Logs metrics of layers on every n-th training step; a context manager around each step.

    On a step that is due, the forward passes inside the `with` block are captured and their metrics
    written when it ends; on all others nothing is hooked. A step that raises writes nothing. "step"
    is the number of steps before it: 0 is the untrained model. Hooks make a model under
    `torch.compile` compile again, twice per logged step.

    Args:
        model: The model that is trained.
        to: Where to write, one or several: a path that ends in .csv or .jsonl, appended to; what
            `tensorboard` or `wandb` gives; any function of the step and {layer: {metric: number}}.
        every: n.
        metrics: Keys of `METRICS`.
        layers: Names, globs or positions. Default: the embedding layer and every block.
        first_step: Number of the first step, when training resumes.

    Raises:
        InputError: an unknown metric, no such layer, every below 1, or a path of another kind. On
            a step: a layer that did not run.

    Example:
        >>> logger = MetricLogger(model, "metrics.csv", every=100)  # doctest: +SKIP
        >>> for batch in loader:  # doctest: +SKIP
        ...     with logger:
        ...         train(model, batch)
    """

    def __init__(
        self,
        model: nn.Module,
        to: Target | Sequence[Target],
        *,
        every: int = 100,
        metrics: Iterable[str] = ("mean_cosine", "relative_drift"),
        layers: Selection = None,
        first_step: int = 0,
    ) -> None:
        if every < 1:
            raise InputError(f"every is {every}; log every 1 or more steps")
        self.step = first_step
        self._every, self._metrics = every, _check_metrics(metrics)
        self._gram = not set(self._metrics) <= _FIRST_ORDER
        several: Sequence[Target] = to if isinstance(to, list | tuple) else [to]  # type: ignore[list-item]
        self._sinks = [_sink(item) for item in several]
        self._model, self._layers = model, layers
        self._run: Capture | None = None
        capture(model, layers, gram=False)  # Refuses layers before the training begins.

    def __enter__(self) -> MetricLogger:
        if self.step % self._every == 0:
            self._run = capture(self._model, self._layers, gram=self._gram)
            self._run.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        run, self._run = self._run, None
        step, self.step = self.step, self.step + 1
        if run is None:
            return
        run.__exit__(kind, error, traceback)
        if error is None:
            values = {
                name: {key: layer.metrics[key] for key in self._metrics}
                for name, layer in run.compute().items()
            }
            for sink in self._sinks:
                sink(step, values)


def tensorboard(folder: str | Path) -> Sink:
    """A sink that writes scalars "layer/metric" for TensorBoard.

    Raises:
        InputError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("tensorboard is not installed; pip install tensorboard") from error
    writer: Any = SummaryWriter(str(folder))

    def write(step: int, values: Values) -> None:
        for name, value in _flat(values).items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def wandb(run: Any = None) -> Sink:
    """A sink that logs "layer/metric" to a Weights & Biases run; by default the current one.

    Raises:
        InputError: wandb is not installed, or there is no run.
    """
    if run is None:
        try:
            module = import_module("wandb")
        except ImportError as error:
            raise InputError("wandb is not installed; pip install wandb") from error
        run = module.run
    if run is None:
        raise InputError("there is no current wandb run; call wandb.init() first")
    return lambda step, values: run.log({**_flat(values), "aniso/step": step})


def _flat(values: Values) -> dict[str, float]:
    return {f"{layer}/{key}": x for layer, found in values.items() for key, x in found.items()}


def _check_metrics(metrics: Iterable[str]) -> tuple[str, ...]:
    chosen = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    for key in chosen:
        if key not in METRICS:
            raise InputError(f"there is no metric {key!r}; use keys of aniso.METRICS")
    if not chosen:
        raise InputError("no metric was named; use keys of aniso.METRICS")
    return chosen


def _sink(to: Target) -> Sink:
    if callable(to):
        return to
    path = Path(to)
    writers = {".csv": _append_csv, ".jsonl": _append_jsonl}
    if path.suffix not in writers:
        raise InputError(f"{path} ends in neither .csv nor .jsonl; name such a file")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} for {path.name}; make it first")
    return lambda step, values: writers[path.suffix](path, step, values)


def _append_csv(path: Path, step: int, values: Values) -> None:
    """Rows step, layer, metrics…; the header once."""
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow(["step", "layer", *next(iter(values.values()))])
        writer.writerows([step, layer, *found.values()] for layer, found in values.items())


def _append_jsonl(path: Path, step: int, values: Values) -> None:
    """One line; a metric that is not defined is null."""
    layers = {
        layer: {key: x if math.isfinite(x) else None for key, x in found.items()}
        for layer, found in values.items()
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "layers": layers}, allow_nan=False) + "\n")
