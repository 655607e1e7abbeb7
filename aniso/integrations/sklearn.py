"""A scikit-learn estimator over the additive second moments: exact, in one pass, of any length."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from aniso.errors import InputError
from aniso.metrics import PrincipalAxes, principal_axes
from aniso.moments import Grams
from aniso.ops import gram_into
from aniso.ops._arrays import as_tensor
from aniso.ops.gram import pilot_of

try:
    from scipy.sparse import issparse
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.validation import check_array, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("scikit-learn 1.6 or newer is missing; install aniso[sklearn]") from error

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

_DTYPES = [np.float64, np.float32]
# Rows of a sparse matrix that are dense at one time.
_SPARSE_ROWS = 1 << 12


class StreamingTruncatedSVD(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Truncated SVD, or PCA with `center`, exact over any number of `partial_fit` calls.

    Keeps Σyyᵀ and Σy of the rows about a row near their mean, in float64: d² numbers, whatever the
    number of rows, from which σ and the components follow (see `principal_axes`). In place of
    scikit-learn's TruncatedSVD (center=False) and IncrementalPCA (center=True), with the
    attributes of each; components are signed so that their entry of largest magnitude is positive.

    Args:
        n_components: k, at most the number of features; default as many as rows and features give.
        center: Subtract the mean.

    Attributes:
        components_: Right singular vectors, [k, d].
        singular_values_: σ of X, or of X − x̄ when centred, [k].
        explained_variance_: Variance of each coordinate: over n − 1 when centred, over n else, [k].
        explained_variance_ratio_: The same over the variance of all features, [k].
        mean_: Mean row, [d].
        resolution_floor_: σ below it are rounding noise.
        n_components_: k.
        n_features_in_: d.
        n_samples_seen_: Rows so far.

    Time O(n d²) for the rows, O(d³) when an attribute is first read after `partial_fit`.

    Example:
        >>> x = np.diag([3.0, 2.0, 1.0])
        >>> StreamingTruncatedSVD(n_components=2).fit(x).singular_values_
        array([3., 2.])
    """

    def __init__(self, n_components: int | None = None, *, center: bool = False) -> None:
        self.n_components = n_components
        self.center = center

    def fit(self, X: Any, y: Any = None) -> StreamingTruncatedSVD:
        """Forgets earlier rows and adds these.

        Args:
            X: Rows, [n, d], an array or a sparse matrix (made dense in blocks).
            y: Ignored.

        Raises:
            ValueError: what scikit-learn refuses, or n_components not in 1..d.
        """
        self._start(self._validated(X, reset=True))
        self._solved()
        return self

    def partial_fit(self, X: Any, y: Any = None) -> StreamingTruncatedSVD:
        """Adds rows; arguments and errors are those of `fit`."""
        first = not hasattr(self, "n_samples_seen_")
        rows = self._validated(X, reset=first)
        if first:
            self._start(rows)
        else:
            self._add(rows)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """`fit`, then `transform` of the same rows."""
        return self.fit(X).transform(X)

    def transform(self, X: Any) -> Any:
        """Coordinates along the components, [n, k], of the dtype of X (float64 or float32)."""
        check_is_fitted(self)
        rows = self._validated(X, reset=False)
        axes = self._solved()
        return np.concatenate([axes.transform(block.numpy()) for block in _blocks(rows)])

    def inverse_transform(self, X: Any) -> Any:
        """Rows [n, d] of which these are the coordinates [n, k]."""
        check_is_fitted(self)
        coordinates = check_array(X, dtype=_DTYPES)
        rows = coordinates @ self.components_.astype(coordinates.dtype)
        return rows + self.mean_.astype(rows.dtype) if self.center else rows

    def _validated(self, X: Any, *, reset: bool) -> Any:
        return validate_data(self, X, accept_sparse="csr", dtype=_DTYPES, reset=reset)

    def _start(self, rows: Any) -> None:
        dim = self.n_features_in_
        _check_components(self.n_components, dim)
        double = partial(torch.zeros, dtype=torch.float64)
        # No Gram matrix of directions.
        self._grams = Grams(
            pilot=double(2, dim),
            raw=double(dim, dim),
            unit=double(0, 0),
            totals=double(2, dim),
            noise=double(2),
        )
        self.n_samples_seen_ = 0
        self._grams.pilot.copy_(pilot_of(next(_blocks(rows)), None))
        self._add(rows)

    def _add(self, rows: Any) -> None:
        self._axes: PrincipalAxes | None = None
        pilot, raw, _, totals, noise = self._grams.tensors()
        for block in _blocks(rows):
            gram_into(block, None, pilot, raw, None, totals, noise)
        self.n_samples_seen_ += rows.shape[0]

    def _solved(self) -> PrincipalAxes:
        check_is_fitted(self)
        if self._axes is None:
            rows, dim = self.n_samples_seen_, self.n_features_in_
            k = min(rows, dim) if self.n_components is None else self.n_components
            self._axes = principal_axes(self._grams, rows, k, center=self.center)
        return self._axes

    @property
    def components_(self) -> Any:
        """Right singular vectors, [k, d]."""
        return self._solved().components.numpy()

    @property
    def singular_values_(self) -> Any:
        """σ, [k], descending."""
        return self._solved().singular_values.numpy()

    @property
    def mean_(self) -> Any:
        """Mean row, [d]."""
        return self._solved().mean.numpy()

    @property
    def explained_variance_(self) -> Any:
        """Variance of the coordinates, [k]."""
        squares, n = self.singular_values_**2, self.n_samples_seen_
        if self.center:
            return squares / max(1, n - 1)
        return np.maximum(squares / n - (self.components_ @ self.mean_) ** 2, 0.0)

    @property
    def explained_variance_ratio_(self) -> Any:
        """The same as a share of the variance of all features; NaN where all are constant."""
        n = self.n_samples_seen_
        total = self._solved().scatter / (max(1, n - 1) if self.center else n)
        return self.explained_variance_ / (total if total > 0 else np.nan)

    @property
    def resolution_floor_(self) -> float:
        """σ below it are rounding noise."""
        return self._solved().resolution_floor

    @property
    def n_components_(self) -> int:
        """K."""
        return len(self.singular_values_)

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _check_components(k: Any, dim: int) -> None:
    if k is not None and not (isinstance(k, int | np.integer) and 1 <= k <= dim):
        raise InputError(f"n_components is {k!r}; X has {dim} features: use 1 to {dim}, or None")


def _blocks(rows: Any) -> Iterator[Tensor]:
    """The rows as tensors: an array whole, without a copy; a sparse matrix block by block."""
    if not issparse(rows):
        yield as_tensor(rows)
        return
    for start in range(0, rows.shape[0], _SPARSE_ROWS):
        yield torch.from_numpy(rows[start : start + _SPARSE_ROWS].toarray())
