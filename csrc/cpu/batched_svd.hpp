// Singular values and vectors of batches of matrices, one thread per matrix.
#pragma once

#include "common/matrices_view.hpp"
#include "cpu/isa.hpp"

namespace aniso::cpu {

/// The largest short side. Its square matrices lie in the second-level cache up to 512, in the
/// third beyond; at 2048 one thread still equals LAPACK's two (measured).
constexpr int64_t BATCHED_SVD_MAX_SIDE = 2048;
/// The largest matrix: each thread holds two copies in float64.
constexpr int64_t BATCHED_SVD_MAX_SIZE = int64_t{1} << 26;

/// The k largest singular values of every matrix, descending, with bounds; singular vectors and
/// checks when out.left is not null. `high` takes Jacobi rotations of the rows themselves.
void batched_svd(const MatricesView& x, const SvdView& out, bool high, int threads, Isa isa);

}  // namespace aniso::cpu
