// The CUDA algorithm of batched_svd on threads of a CPU, for tests where no GPU is at hand.
#pragma once

#include "common/matrices_view.hpp"
#include "cuda/batched_svd_limits.hpp"

namespace aniso::cuda {

/// As batched_svd on a GPU, one matrix after the other by a team of `threads`: a multiple of 4 of
/// at most 64, a power of two. `near` as where the Gram matrix fits on chip. min(m, n) <= 512.
void batched_svd_emulated(const MatricesView& x, const SvdView& out, SvdEffort effort, int threads,
                          bool near);

}  // namespace aniso::cuda
