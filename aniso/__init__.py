"""Pairwise cosine statistics and singular spectra of transformer representations."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aniso._analyze import analyze
    from aniso._compare import compare
    from aniso.dumps import Dump, DumpWriter, open_dump
    from aniso.errors import InputError
    from aniso.metrics import (
        METRICS,
        Comparison,
        CosineHistogram,
        CosineStats,
        GroupCosine,
        LayerMetrics,
        PrincipalAxes,
        SequenceSpectra,
        SequenceStatistic,
        SequenceSummary,
        SketchedAxes,
        first_token_cosine,
        group_cosine,
    )
    from aniso.metrics.cosine_histogram import cosine_histogram, cosine_quantile
    from aniso.metrics.cosine_stats import cosine_stats
    from aniso.metrics.sequence_spectra import sequence_spectra
    from aniso.models.attach import Attachment, attach
    from aniso.models.capture import Capture, capture
    from aniso.moments import RowMoments
    from aniso.ops.backend import Backend, select_backend
    from aniso.ops.batched_svd import SVD, Certificate, svd, svdvals
    from aniso.ops.cross_gram import cross_gram
    from aniso.ops.gram import gram
    from aniso.ops.row_moments import row_moments
    from aniso.ops.spectral_map import spectral_map
    from aniso.ops.truncated_svd import TruncatedSVD, truncated_svd
    from aniso.report import Report
    from aniso.state import LayerState, PairedState, RowSample, SequenceState, SketchState
    from aniso.transform import AllButTheTop, SoftDecay, Whitening, soft_decay

# Where each public name lives. Resolved on first use: `aniso --help` must not wait for torch.
_HOMES = {
    "METRICS": "aniso.metrics",
    "AllButTheTop": "aniso.transform",
    "Attachment": "aniso.models",
    "SVD": "aniso.ops",
    "Backend": "aniso.ops",
    "Capture": "aniso.models",
    "Certificate": "aniso.ops",
    "CosineHistogram": "aniso.metrics",
    "Comparison": "aniso.metrics",
    "CosineStats": "aniso.metrics",
    "Dump": "aniso.dumps",
    "DumpWriter": "aniso.dumps",
    "GroupCosine": "aniso.metrics",
    "InputError": "aniso.errors",
    "LayerMetrics": "aniso.metrics",
    "LayerState": "aniso.state",
    "PairedState": "aniso.state",
    "PrincipalAxes": "aniso.metrics",
    "Report": "aniso.report",
    "RowMoments": "aniso.moments",
    "RowSample": "aniso.state",
    "SequenceSpectra": "aniso.metrics",
    "SequenceState": "aniso.state",
    "SequenceStatistic": "aniso.metrics",
    "SequenceSummary": "aniso.metrics",
    "SketchState": "aniso.state",
    "SketchedAxes": "aniso.metrics",
    "TruncatedSVD": "aniso.ops",
    "SoftDecay": "aniso.transform",
    "Whitening": "aniso.transform",
    "analyze": "aniso._analyze",
    "attach": "aniso.models",
    "capture": "aniso.models",
    "cosine_histogram": "aniso.metrics",
    "cosine_quantile": "aniso.metrics",
    "compare": "aniso._compare",
    "cosine_stats": "aniso.metrics",
    "cross_gram": "aniso.ops",
    "first_token_cosine": "aniso.metrics",
    "gram": "aniso.ops",
    "group_cosine": "aniso.metrics",
    "open_dump": "aniso.dumps",
    "row_moments": "aniso.ops",
    "select_backend": "aniso.ops",
    "sequence_spectra": "aniso.metrics",
    "soft_decay": "aniso.transform",
    "spectral_map": "aniso.ops",
    "svd": "aniso.ops",
    "svdvals": "aniso.ops",
    "truncated_svd": "aniso.ops",
}

__all__ = [
    "METRICS",
    "SVD",
    "AllButTheTop",
    "Attachment",
    "Backend",
    "Capture",
    "Certificate",
    "Comparison",
    "CosineHistogram",
    "CosineStats",
    "Dump",
    "DumpWriter",
    "GroupCosine",
    "InputError",
    "LayerMetrics",
    "LayerState",
    "PairedState",
    "PrincipalAxes",
    "Report",
    "RowMoments",
    "RowSample",
    "SequenceSpectra",
    "SequenceState",
    "SequenceStatistic",
    "SequenceSummary",
    "SketchState",
    "SketchedAxes",
    "SoftDecay",
    "TruncatedSVD",
    "Whitening",
    "analyze",
    "attach",
    "capture",
    "compare",
    "cosine_histogram",
    "cosine_quantile",
    "cosine_stats",
    "cross_gram",
    "first_token_cosine",
    "gram",
    "group_cosine",
    "open_dump",
    "row_moments",
    "select_backend",
    "sequence_spectra",
    "soft_decay",
    "spectral_map",
    "svd",
    "svdvals",
    "truncated_svd",
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
