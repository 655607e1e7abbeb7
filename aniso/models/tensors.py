"""Running a model over inputs that were prepared already: images, audio, token ids."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from aniso.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor


def read_inputs(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by the names of a model's arguments.

    Such as pixel_values [n, 3, h, w], input_values [n, samples], input_features [n, bins, frames],
    with attention_mask or decoder_input_ids where the model takes them.

    Raises:
        InputError: the file cannot be read, is empty, or its tensors differ in length.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        inputs: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); pass a safetensors file of a model's inputs"
        ) from error
    lengths = {name: len(x) if x.ndim else 0 for name, x in inputs.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        raise InputError(
            f"{path} has {lengths or 'no tensors'}; every tensor must have one entry per input"
        )
    return inputs


def run_inputs(
    model: Any,
    inputs: Mapping[str, Tensor],
    *,
    batch_size: int = 32,
    after_batch: Callable[[int], None] = lambda count: None,
) -> None:
    """Calls the model on all inputs in batches.

    Args:
        model: A Hugging Face model.
        inputs: From `read_inputs`.
        batch_size: Inputs per call.
        after_batch: Called with the number of inputs of each batch.

    Raises:
        InputError: the model takes no argument of that name.
    """
    known = inspect.signature(model.forward).parameters
    for name in inputs:
        if name not in known:
            raise InputError(
                f"{type(model).__name__} takes no {name}; name the tensors as its arguments: "
                f"{model.main_input_name} and others"
            )
    for start in range(0, len(next(iter(inputs.values()))), batch_size):
        batch = {name: x[start : start + batch_size] for name, x in inputs.items()}
        placed = {
            name: x.to(model.device, model.dtype if x.is_floating_point() else None)
            for name, x in batch.items()
        }
        with torch.inference_mode():
            model(**placed)
        after_batch(len(next(iter(batch.values()))))
