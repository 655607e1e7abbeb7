from __future__ import annotations

import dataclasses
import doctest
import inspect
import subprocess
import sys
from importlib import import_module

import pytest

import aniso
from aniso.metrics import METRICS

NAMES = [
    "METRICS",
    "SVD",
    "AllButTheTop",
    "Attachment",
    "Backend",
    "Capture",
    "Certificate",
    "CosineHistogram",
    "Comparison",
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
    "TruncatedSVD",
    "SoftDecay",
    "Whitening",
    "analyze",
    "attach",
    "capture",
    "cosine_histogram",
    "cosine_quantile",
    "compare",
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

SIGNATURES = {
    "analyze": "(source, *, out=None, layers=None, gram=True, strict=False, resume=True, "
    "deterministic=False, progress=True)",
    "attach": "(model, layers, transform, *, side='output', register=False)",
    "capture": "(model, layers=None, *, sites='residual', exclude_special_tokens=False, "
    "exclude_token_ids=(), max_norm_multiple=None, tokenizer=None, gram=True, groups=None, "
    "memory=None, save=None)",
    "cosine_histogram": "(x, *, other=None, mask=None, bins=2048, max_pairs=None, seed=0, "
    "confidence=0.99)",
    "cosine_quantile": "(x, q, *, mask=None, tolerance=1e-06)",
    "cosine_stats": "(x, *, mask=None, nonfinite='raise', without=None)",
    "compare": "(a, b, *, mask=None)",
    "cross_gram": "(x, y, *, normalize=False, mask=None)",
    "first_token_cosine": "(x, groups, *, mask=None)",
    "gram": "(x, *, normalize=False, center=False, mask=None)",
    "group_cosine": "(x, groups, *, mask=None)",
    "open_dump": "(path)",
    "row_moments": "(x, *, mask=None)",
    "select_backend": "(op, x)",
    "soft_decay": "(x, alpha=-0.6, *, mode='paper', mask=None, flips=False)",
    "spectral_map": "(x, f, *, mask=None)",
    "svd": "(x, *, k=None, accuracy='normal')",
    "svdvals": "(x, *, k=None, accuracy='normal', certificate=False)",
    "truncated_svd": "(x, k, *, method='auto', tol=None, seed=0)",
    "sequence_spectra": "(x, *, lengths=None, mask=None)",
    "SequenceState": "()",
    "SketchState": "(dim, size, *, seed=0, device='cpu')",
    "SoftDecay": "(alpha=-0.6, *, mode='paper', trainable=False)",
    "AllButTheTop": "(top=1)",
    "LayerState": "(dim, *, gram=True, groups=False, device='cpu')",
    "RowSample": "(size, dim, *, seed=0)",
    "PairedState": "(dim_x, dim_y, *, device='cpu')",
}

KEYS = [
    "mean_cosine",
    "var_cosine",
    "std_cosine",
    "rogue_share_1",
    "rogue_share_3",
    "rogue_share_10",
    "drift_norm",
    "mean_norm",
    "rms_norm",
    "relative_drift",
    "explained_variance_1",
    "explained_variance_3",
    "explained_variance_10",
    "rankme",
    "singular_entropy_kl",
    "stable_rank",
    "sv_skewness",
    "sv_median_ratio",
    "alpha_req",
    "participation_ratio",
    "isoscore",
    "spectral_anisotropy",
    "effective_rank",
    "von_neumann_entropy",
    "renyi2_entropy",
]

FIELDS = [
    "rows",
    "zero_rows",
    "nonfinite_rows",
    "mask_rows",
    "mean",
    "var",
    "std",
    "drift_norm",
    "mean_norm",
    "relative_drift",
    "contributions",
    "without",
]

GROUP_FIELDS = [
    "within",
    "within_mean",
    "between",
    "rows",
    "zero_rows",
    "groups",
    "ids",
    "counts",
    "per_group",
    "intra_similarity",
]


AXES = [
    "singular_values",
    "components",
    "mean",
    "rows",
    "centered",
    "scatter",
    "resolution_floor",
]

COMPARISON = ["rows", "rsa_pearson", "debiased_cka", "metrics_a", "metrics_b", "delta"]


def test_names_are_frozen():
    assert sorted(aniso.__all__) == sorted(NAMES)
    assert dir(aniso) == sorted(NAMES)
    assert list(METRICS) == KEYS
    assert [f.name for f in dataclasses.fields(aniso.CosineStats)] == FIELDS
    assert [f.name for f in dataclasses.fields(aniso.Comparison)] == COMPARISON
    for method in ("update", "merge", "compute", "save", "load", "state_dict"):
        assert callable(getattr(aniso.PairedState, method))
    assert [f.name for f in dataclasses.fields(aniso.GroupCosine)] == GROUP_FIELDS
    for method in ("update", "merge", "reset", "compute", "save", "load", "state_dict"):
        assert callable(getattr(aniso.LayerState, method))
    assert callable(aniso.LayerState.principal_axes)
    assert [f.name for f in dataclasses.fields(aniso.PrincipalAxes)] == AXES


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_frozen(name):
    signature = inspect.signature(getattr(aniso, name))
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    plain = signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)
    assert str(plain) == SIGNATURES[name]


def test_functions_stay_callable_after_their_modules_are_imported():
    import_module("aniso._analyze")
    assert callable(aniso.analyze) and callable(aniso.capture)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'anisotropy'"):
        _ = aniso.anisotropy


def test_importing_the_package_loads_no_torch():
    code = "import sys, aniso; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "module",
    [
        "aniso.ops.row_moments",
        "aniso.ops.gram",
        "aniso.metrics.cosine_histogram",
        "aniso.metrics.cosine_stats",
        "aniso.metrics.pair_design",
        "aniso.metrics.pair_sample",
        "aniso.metrics.rogue",
        "aniso.metrics.uniformity",
        "aniso.state.layer_state",
        "aniso.state.row_sample",
        "aniso._compare",
        "aniso.ops.cross_gram",
        "aniso.state.paired_state",
        "aniso.metrics.groups",
        "aniso.metrics.neighbourhood",
        "aniso.ops.batched_svd",
        "aniso.ops.truncated_svd",
        "aniso.metrics.sequence_spectra",
        "aniso.state.sequence_state",
        "aniso.state.sketch_state",
        "aniso.integrations.sklearn",
        "aniso.integrations.torchmetrics",
        "aniso.ops.spectral_map",
        "aniso.transform",
    ],
)
def test_examples_in_docstrings_run(module):
    import torch

    loaded = import_module(module)
    names = {"torch": torch, **{n: getattr(aniso, n) for n in NAMES}}
    results = doctest.testmod(loaded, extraglobs=names)
    assert results.attempted > 0 and results.failed == 0


@pytest.mark.parametrize("name", [n for n in NAMES if n != "METRICS"])
def test_public_things_are_documented_and_typed(name):
    thing = getattr(aniso, name)
    assert thing.__doc__ and len(thing.__doc__) > 20
    if inspect.isfunction(thing):
        annotated = inspect.signature(thing)
        assert annotated.return_annotation is not inspect.Signature.empty
        assert all(
            p.annotation is not inspect.Parameter.empty for p in annotated.parameters.values()
        )
