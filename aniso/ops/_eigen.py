"""The symmetric eigenproblem of one large matrix: the one place that chooses its solver.

LAPACK's, through torch: it takes one matrix with all threads, where the kernel of batched_svd, a
thread per matrix, is level with it at d = 384 and behind it from 768 on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_UNIT = 2.0**-53


def descending_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [d], descending, and eigenvectors [d, d], columns, of a symmetric matrix.

    Args:
        matrix: [d, d], float64, finite.

    Time O(d³). The values are those of a matrix within `eigh_error` of this one.
    """
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0), vectors.flip(1)


def eigh_error(matrix: Tensor) -> float:
    """Bound of the solver's backward error: 8 d u ‖matrix‖_F, u = 2⁻⁵³."""
    return 8 * len(matrix) * _UNIT * float(torch.linalg.matrix_norm(matrix))
