"""Metrics of a model's layers from within the Hugging Face Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aniso.integrations.training import MetricLogger

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError("transformers is missing; install aniso[hf]") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aniso.integrations.training import Target


class MetricCallback(TrainerCallback):
    """A `MetricLogger` around every training step; evaluation is left out.

    With several processes the first one writes, of the tokens it sees.

    Args:
        to: As for `MetricLogger`.
        options: `every`, `metrics`, `layers` of `MetricLogger`.

    Example:
        >>> Trainer(model, callbacks=[MetricCallback("metrics.jsonl", every=50)])  # doctest: +SKIP
    """

    def __init__(self, to: Target | Sequence[Target], **options: Any) -> None:
        self._to, self._options = to, options
        self._logger: MetricLogger | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes the logger."""
        if state.is_world_process_zero:
            self._logger = MetricLogger(
                kwargs["model"], self._to, first_step=state.global_step, **self._options
            )

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Captures a step that is due."""
        if self._logger is not None:
            self._logger.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes what was captured."""
        if self._logger is not None:
            self._logger.__exit__(None, None, None)
