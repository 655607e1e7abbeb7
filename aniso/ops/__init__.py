"""Ops: checked arguments in, kernels underneath, one fastest implementation per device."""

from aniso.ops.backend import Backend, select_backend
from aniso.ops.batched_svd import SVD, Certificate, batched_svd_into, svd, svdvals
from aniso.ops.capture_rows import capture_rows_into
from aniso.ops.cross_gram import cross_gram, cross_gram_into
from aniso.ops.gram import gram, gram_into
from aniso.ops.group_moments import group_moments_into, group_products
from aniso.ops.pair_histogram import pair_histogram_into
from aniso.ops.row_moments import row_moments, row_moments_into
from aniso.ops.spectral_map import spectral_map
from aniso.ops.truncated_svd import TruncatedSVD, truncated_svd

__all__ = [
    "SVD",
    "Backend",
    "Certificate",
    "TruncatedSVD",
    "batched_svd_into",
    "capture_rows_into",
    "cross_gram",
    "cross_gram_into",
    "gram",
    "gram_into",
    "group_moments_into",
    "group_products",
    "pair_histogram_into",
    "row_moments",
    "row_moments_into",
    "select_backend",
    "spectral_map",
    "svd",
    "svdvals",
    "truncated_svd",
]
