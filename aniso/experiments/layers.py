"""Mean cosine and drift by layer, for several models side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aniso.errors import InputError
from aniso.experiments._output import number, plain_table, save_results
from aniso.experiments._plot import Line, Panel, draw, layer_labels, shade
from aniso.models import TextModel, capture, run_inputs, run_texts
from aniso.progress import Progress, ProgressMode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from rich.table import Table
    from torch import Tensor, nn

    from aniso._names import Selection

DRIFT_METRICS = ("mean_cosine", "relative_drift", "drift_norm", "mean_norm")
"""What is known of every layer, by the keys of `METRICS`."""


@dataclass(frozen=True)
class LayersReport:
    """Numbers per layer.

    Attributes:
        models: {model: {layer: {key of DRIFT_METRICS: number}}}, in order of execution.
        provenance: Inputs and models.
    """

    models: dict[str, dict[str, dict[str, float]]]
    provenance: dict[str, Any]

    def results(self) -> dict[str, Any]:
        """What the JSON file holds; a number that is not defined is null."""
        models = [
            {
                "model": model,
                "layers": [
                    {"name": name, "metrics": {key: number(v) for key, v in found.items()}}
                    for name, found in layers.items()
                ],
            }
            for model, layers in self.models.items()
        ]
        head = {"schema": 1, "experiment": "layers"}
        return {**head, "models": models, "provenance": self.provenance}

    def table(self) -> Table:
        """One row per layer of every model."""
        columns = ["model", "layer", "mean cosine", "drift / norm", "drift"]
        table = plain_table("drift: norm of the mean row", columns)
        for model, layers in self.models.items():
            for name, found in layers.items():
                cells = (found[key] for key in DRIFT_METRICS[:3])
                table.add_row(model, name, *(f"{cell:.3f}" for cell in cells))
        return table

    def save(self, folder: Path) -> list[Path]:
        """Writes layers.json, then layers.svg; returns their paths.

        Raises:
            InputError: matplotlib is not installed; the JSON file is written all the same.
        """
        return save_results(folder, "layers", self.results(), self._svg)

    def _svg(self) -> str:
        axes = {
            "mean_cosine": ("mean cosine of all pairs of tokens", "cosine"),
            "relative_drift": ("drift", "share of the mean norm"),
        }
        return draw([self._panel(key, *words) for key, words in axes.items()])

    def _panel(self, key: str, title: str, y_label: str) -> Panel:
        """By layer; by relative depth where models have different layers."""
        path, names = layer_labels(self.models)
        lines = []
        for i, (model, layers) in enumerate(self.models.items()):
            last = 1 if names else max(1, len(layers) - 1)
            places = [at / last for at in range(len(layers))]
            heights = [found[key] for found in layers.values()]
            lines.append(Line(model, places, heights, shade(i, len(self.models))))
        x_label = path if names else "depth, embeddings 0, last block 1"
        return Panel(title, x_label, lines, names, y=y_label)


def layers(
    models: Mapping[str, TextModel | nn.Module],
    inputs: Sequence[str] | Mapping[str, Tensor],
    provenance: Mapping[str, Any],
    *,
    layers: Selection = None,
    batch_size: int = 64,
    progress: ProgressMode = True,
) -> LayersReport:
    """Mean cosine of all pairs of tokens, and drift, by layer, for several models.

    All tokens count, special ones too, but not padding; an image's patches and an audio's frames
    are tokens.

    Args:
        models: From `load_model` for texts, else from `load_network`, by the name to show.
        inputs: Texts, or tensors from `read_inputs`, the same for all models.
        provenance: What the report says of inputs and models.
        layers: Names, globs or positions. Default: the embedding layer and every block.
        batch_size: Inputs per call of a model.
        progress: Show progress on stderr; "json" for JSON lines.

    Raises:
        InputError: texts for a model without a tokenizer, no such layer, or inputs that a model
            does not take.

    Reference: Godey et al., "Anisotropy Is Inherent to Self-Attention in Transformers", EACL 2024,
    figure 1.
    """
    count = len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)
    found = {}
    with Progress("layers", len(models) * count, progress, unit="inputs") as shown:
        for name, model in models.items():
            network = model.model if isinstance(model, TextModel) else model
            with capture(network, layers, gram=False) as run:
                _run(model, inputs, batch_size, shown.advance)
            found[name] = {
                layer: {key: metrics.metrics[key] for key in DRIFT_METRICS}
                for layer, metrics in run.compute().items()
            }
    return LayersReport(found, {**provenance, "count": count})


def _run(
    model: TextModel | nn.Module,
    inputs: Sequence[str] | Mapping[str, Tensor],
    batch_size: int,
    after_batch: Callable[[int], None],
) -> None:
    if isinstance(inputs, Mapping):
        network = model.model if isinstance(model, TextModel) else model
        run_inputs(network, inputs, batch_size=batch_size, after_batch=after_batch)
    elif isinstance(model, TextModel):
        run_texts(model, inputs, batch_size=batch_size, after_batch=after_batch)
    else:
        raise InputError(
            f"a {type(model).__name__} without a tokenizer takes no texts; pass tensors, or a "
            "model from load_model"
        )
