// What batched_svd.cpp allocates and batched_svd_kernel.cpp works on.
#pragma once

#include "common/matrices_view.hpp"
#include "cpu/isa.hpp"

namespace aniso::cpu {

/// Doubles of scratch that one matrix of sides p <= q takes.
constexpr int64_t batched_svd_scratch(int64_t p, int64_t q) {
  const int64_t rows = p + 23, matrices = rows * (2 * (q + 31) + 4 * (p + 31));
  const int64_t vectors = (24 + 4 * 8) * (rows + 40) + 3 * (p + 31),
                probes = 24 * (q + 31 + 4 * (p + 31));
  return matrices + vectors + probes + 128 * 24 + 96 * (48 + rows) + 64;
}

/// Factorises matrix `index`; scratch holds batched_svd_scratch(p, q) doubles.
ANISO_PER_ISA(void batched_svd_one(const MatricesView& x, int64_t index, const SvdView& out,
                                   bool high, double* scratch);)

}  // namespace aniso::cpu
