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

SIGNATURES = {
    "analyze": "(source, *, out=None, layers=None, gram=True, strict=False, resume=True, "
    "progress=True)",
    "capture": "(model, layers=None, *, exclude_special_tokens=False, exclude_token_ids=(), "
    "tokenizer=None, gram=True, save=None)",
    "cosine_stats": "(x, *, mask=None, nonfinite='raise')",
    "first_token_cosine": "(x, groups, *, mask=None)",
    "gram": "(x, *, normalize=False, center=False, mask=None)",
    "group_cosine": "(x, groups, *, mask=None)",
    "open_dump": "(path)",
    "row_moments": "(x, *, mask=None)",
    "select_backend": "(op, x)",
    "LayerState": "(dim, *, gram=True, device='cpu')",
}

KEYS = [
    "mean_cosine",
    "var_cosine",
    "std_cosine",
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


def test_names_are_frozen():
    assert sorted(aniso.__all__) == sorted(NAMES)
    assert dir(aniso) == sorted(NAMES)
    assert list(METRICS) == KEYS
    assert [f.name for f in dataclasses.fields(aniso.CosineStats)] == FIELDS
    assert [f.name for f in dataclasses.fields(aniso.GroupCosine)] == GROUP_FIELDS
    for method in ("update", "merge", "reset", "compute", "save", "load", "state_dict"):
        assert callable(getattr(aniso.LayerState, method))


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
        "aniso.metrics.cosine",
        "aniso.metrics.groups",
        "aniso.state.layer_state",
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
