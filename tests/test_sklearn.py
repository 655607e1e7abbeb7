from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
from sklearn.decomposition import PCA, IncrementalPCA, TruncatedSVD
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from aniso.integrations.sklearn import StreamingTruncatedSVD

PEERS = ["singular_values_", "explained_variance_", "explained_variance_ratio_"]


def rows(n=900, d=20, dtype=np.float64):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)) * np.logspace(0, -2, d) + rng.standard_normal(d)
    return x.astype(dtype)


def checks():
    """All of scikit-learn's but those of the array standard, which need a switch."""
    for estimator in (StreamingTruncatedSVD(), StreamingTruncatedSVD(1, center=True)):
        for instance, check in estimator_checks_generator(estimator):
            if "array_api" not in check.func.__name__:
                name = f"{check.func.__name__}-{estimator.center}"
                yield pytest.param(instance, check, id=name)


@pytest.mark.parametrize(("estimator", "check"), list(checks()))
def test_is_an_estimator(estimator, check):
    check(estimator)


def test_is_an_estimator_of_arrays_of_the_standard():
    """SciPy reads the switch when it is imported; with it no check is skipped."""
    code = """if True:
        from sklearn.utils.estimator_checks import check_estimator
        from aniso.integrations.sklearn import StreamingTruncatedSVD
        found = check_estimator(StreamingTruncatedSVD(), on_skip=None)
        assert any("array_api" in check["check_name"] for check in found)
        print({check["status"] for check in found})
    """
    environment = os.environ | {"SCIPY_ARRAY_API": "1"}
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.stdout.strip() == "{'passed'}", result.stderr


def assert_same(ours, peer, tolerance):
    for name in PEERS:
        np.testing.assert_allclose(getattr(ours, name), getattr(peer, name), rtol=tolerance)
    overlap = np.abs((ours.components_ * peer.components_).sum(axis=1))
    np.testing.assert_allclose(overlap, 1.0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_in_place_of_truncated_svd(dtype, tolerance):
    x = rows(dtype=dtype)
    ours = StreamingTruncatedSVD(4).fit(x)
    for peer in (
        TruncatedSVD(4, algorithm="arpack"),
        TruncatedSVD(4, algorithm="randomized", n_iter=30, random_state=0),
    ):
        assert_same(ours, peer.fit(x), max(tolerance, 1e-6))
        np.testing.assert_allclose(
            np.abs(ours.transform(x)), np.abs(peer.transform(x)), atol=1e-4 * np.abs(x).max()
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_in_place_of_pca(dtype, tolerance):
    x = rows(dtype=dtype)
    ours = StreamingTruncatedSVD(4, center=True).fit(x)
    assert_same(ours, PCA(4, svd_solver="full").fit(x), tolerance)
    # All components, so that IncrementalPCA is exact too.
    every = StreamingTruncatedSVD(center=True).fit(x)
    peer = IncrementalPCA(batch_size=100).fit(x)
    assert_same(every, peer, tolerance)
    np.testing.assert_allclose(ours.mean_, peer.mean_, rtol=1e-5)
    signs = np.sign((ours.components_ * peer.components_[:4]).sum(axis=1))
    np.testing.assert_allclose(
        ours.transform(x) * signs, peer.transform(x)[:, :4], atol=10 * tolerance
    )


@pytest.mark.parametrize("center", [False, True])
def test_batches_of_any_size_are_one_fit(center):
    x = rows()
    whole, parts = StreamingTruncatedSVD(5, center=center).fit(x), None
    parts = StreamingTruncatedSVD(5, center=center)
    for part in np.split(x, [1, 2, 50, 600]):
        parts.partial_fit(part)
    assert parts.n_samples_seen_ == len(x)
    assert_same(parts, whole, 1e-11)
    np.testing.assert_allclose(parts.transform(x), whole.transform(x), atol=1e-10)
    assert_same(parts.fit(x), whole, 1e-13)
    assert parts.n_samples_seen_ == len(x)


@pytest.mark.parametrize("center", [False, True])
def test_sparse_rows_are_dense_ones(center, monkeypatch):
    import aniso.integrations.sklearn as module

    monkeypatch.setattr(module, "_SPARSE_ROWS", 100)
    x = rows() * (np.random.default_rng(1).random((900, 20)) < 0.3)
    sparse, dense = (StreamingTruncatedSVD(3, center=center) for _ in range(2))
    coordinates = sparse.fit_transform(scipy.sparse.csr_matrix(x))
    np.testing.assert_allclose(coordinates, dense.fit_transform(x), atol=1e-10)
    assert_same(sparse, dense, 1e-10)


@pytest.mark.parametrize("center", [False, True])
def test_there_and_back(center):
    x = rows(dtype=np.float32)
    full = StreamingTruncatedSVD(center=center).fit(x)
    assert full.n_components_ == 20
    back = full.inverse_transform(full.transform(x))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, x, atol=1e-5)
    rank_3 = StreamingTruncatedSVD(3, center=center).fit(x)
    error = np.linalg.norm(rank_3.inverse_transform(rank_3.transform(x)) - x)
    assert error == pytest.approx(np.linalg.norm(full.singular_values_[3:]), rel=1e-4)


def test_in_a_pipeline_with_names_and_pickles():
    pipeline = make_pipeline(StandardScaler(), StreamingTruncatedSVD(2)).fit(rows())
    names = ["streamingtruncatedsvd0", "streamingtruncatedsvd1"]
    assert pipeline.get_feature_names_out().tolist() == names
    again = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(again.transform(rows()), pipeline.transform(rows()))


def test_a_large_offset_costs_no_digits():
    x = rows()
    offset = StreamingTruncatedSVD(5, center=True).fit(x + 1e6)
    plain = StreamingTruncatedSVD(5, center=True).fit(x)
    np.testing.assert_allclose(offset.singular_values_, plain.singular_values_, rtol=1e-8)


@pytest.mark.parametrize("k", [0, 21, 1.5, "all"])
def test_components_out_of_range_are_named(k):
    with pytest.raises(ValueError, match="X has 20 features: use 1 to 20"):
        StreamingTruncatedSVD(k).fit(rows())
