// What spectral_map.cpp allocates and spectral_map_kernel.cpp works on.
#pragma once

#include "cpu/batched_svd_kernel.hpp"
#include "cpu/spectral_map.hpp"

namespace aniso::cpu {

/// Doubles of scratch that the factors of one matrix m × n take.
constexpr int64_t spectral_factors_scratch(int64_t m, int64_t n) {
  const int64_t p = m < n ? m : n, q = m < n ? n : m;
  return batched_svd_scratch(p, q) + m + m * n + m * p + 3 * p + 48;
}

/// Doubles of scratch that the map of one matrix takes, forward or backward; `wide`: float64.
constexpr int64_t spectral_map_scratch(int64_t m, int64_t n, bool wide) {
  const int64_t p = m < n ? m : n, slack = 64;
  const int64_t entries = 2 * m * (n + slack) + m * p + 7 * p * (p + slack) + 128 * slack;
  return m + 6 * (p + 8) + (wide ? entries : entries / 2) + 256;
}

/// Matrix `index`; scratch: spectral_factors_scratch.
ANISO_PER_ISA(void spectral_factors_one(const MatricesView& x, const uint8_t* mask, int64_t index,
                                        const SpectralFactors& out, int8_t* methods,
                                        double* scratch);)

/// Matrix `index`, forward and backward; scratch: spectral_map_scratch.
ANISO_PER_ISA(void spectral_map_one(const SpectralMapView& view, int64_t index, double* scratch);
              void spectral_map_backward_one(const SpectralMapView& view,
                                             const SpectralGradient& gradient, int64_t index,
                                             double* scratch);)

}  // namespace aniso::cpu
