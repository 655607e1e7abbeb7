"""Pairwise cosine statistics and singular spectra of transformer representations."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aniso._analyze import analyze
    from aniso.dumps import Dump, DumpWriter, open_dump
    from aniso.errors import InputError
    from aniso.metrics import (
        METRICS,
        CosineStats,
        GroupCosine,
        LayerMetrics,
        cosine_stats,
        first_token_cosine,
        group_cosine,
    )
    from aniso.models.capture import Capture, capture
    from aniso.moments import RowMoments
    from aniso.ops.backend import Backend, select_backend
    from aniso.ops.gram import gram
    from aniso.ops.row_moments import row_moments
    from aniso.report import Report
    from aniso.state import LayerState

# Where each public name lives. Resolved on first use: `aniso --help` must not wait for torch.
_HOMES = {
    "METRICS": "aniso.metrics",
    "Backend": "aniso.ops",
    "Capture": "aniso.models",
    "CosineStats": "aniso.metrics",
    "Dump": "aniso.dumps",
    "DumpWriter": "aniso.dumps",
    "GroupCosine": "aniso.metrics",
    "InputError": "aniso.errors",
    "LayerMetrics": "aniso.metrics",
    "LayerState": "aniso.state",
    "Report": "aniso.report",
    "RowMoments": "aniso.moments",
    "analyze": "aniso._analyze",
    "capture": "aniso.models",
    "cosine_stats": "aniso.metrics",
    "first_token_cosine": "aniso.metrics",
    "gram": "aniso.ops",
    "group_cosine": "aniso.metrics",
    "open_dump": "aniso.dumps",
    "row_moments": "aniso.ops",
    "select_backend": "aniso.ops",
}

__all__ = [
    "METRICS",
    "Backend",
    "Capture",
    "CosineStats",
    "Dump",
    "DumpWriter",
    "GroupCosine",
    "InputError",
    "LayerMetrics",
    "LayerState",
    "Report",
    "RowMoments",
    "analyze",
    "capture",
    "cosine_stats",
    "first_token_cosine",
    "gram",
    "group_cosine",
    "open_dump",
    "row_moments",
    "select_backend",
]


def __getattr__(name: str) -> Any:
    if name == "_native" and find_spec("aniso._native") is None:
        raise ImportError(
            "this is the source folder of aniso, not an installed aniso; run Python from another "
            "folder, or with -P"
        )
    if name not in _HOMES:
        raise AttributeError(f"module 'aniso' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
