// The elementwise part of the gradient of U f(S) Vᵀ.
#pragma once

#include <cstdint>

#include "cpu/isa.hpp"

namespace aniso::cpu {

/// Batches of k × k numbers, contiguous; `wide`: p and out are float64, else float32.
struct SpectralInnerView {
  int64_t b;
  int64_t k;
  bool wide;
  const void* p;          ///< [b, k, k] UᵀCV
  const double* s;        ///< [b, k] singular values
  const double* values;   ///< [b, k] what replaces them
  const double* slopes;   ///< [b, k, k] divided differences where both s are positive
  const double* at_zero;  ///< [b] slope at zero
  const double* stretch;  ///< [b, k] values/s
  bool by_row;            ///< stretch belongs to the row of an entry, else to its column
  void* out;              ///< [b, k, k]
};

/// out_ij = Γ⁺_ij p_ij + (Γ⁻_ij − Γ⁺_ij)(p_ij + p_ji)/2 − stretch p_ij, in float64 until stored.
void spectral_inner(const SpectralInnerView& view, int threads, Isa isa);

}  // namespace aniso::cpu
