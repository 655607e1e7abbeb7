"""Hook points of models, live capture, and running models over texts."""

from aniso.models.attach import Attachment, attach
from aniso.models.capture import Capture, CaptureOptions, capture
from aniso.models.hook_points import hook_points
from aniso.models.packaged import packaged_model, verify_weights
from aniso.models.sites import HookPoint
from aniso.models.tensors import read_inputs, run_inputs
from aniso.models.texts import (
    TextModel,
    count_tokens,
    load_model,
    load_network,
    read_texts,
    run_texts,
)

__all__ = [
    "Attachment",
    "Capture",
    "CaptureOptions",
    "HookPoint",
    "TextModel",
    "attach",
    "capture",
    "count_tokens",
    "hook_points",
    "load_model",
    "load_network",
    "packaged_model",
    "read_inputs",
    "read_texts",
    "run_inputs",
    "run_texts",
    "verify_weights",
]
