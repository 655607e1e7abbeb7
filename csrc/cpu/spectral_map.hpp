// U f(S) Vᵀ of batches of matrices and its gradient, over the kept rows of each, one thread per
// matrix.
#pragma once

#include "common/matrices_view.hpp"
#include "cpu/isa.hpp"

namespace aniso::cpu {

/// Factors of matrices [b, m, n], contiguous, k = min(m, n). Those of a matrix with c kept rows are
/// the first min(c, n), the rest is zero; U is zero in rows that are not kept. s is 0 where it
/// cannot be told from it.
struct SpectralFactors {
  void* u;    ///< [b, m, k]
  double* s;  ///< [b, k]
  void* vh;   ///< [b, k, n]
  int64_t k;
};

/// What a map does, and where. u and vh are float64 for float64 matrices, else float32.
struct SpectralMapView {
  MatricesView x;          ///< what is mapped or, backward, the incoming gradient
  const uint8_t* mask;     ///< [b, m] rows to keep, or null: all
  const uint8_t* defined;  ///< [b] matrices to map, or null: all
  SpectralFactors factors;
  const double* values;  ///< [b, k] g, what replaces s
  void* out;             ///< [b, m, n] of x's dtype; backward null: no gradient in x
};

/// What the backward pass reads besides, and writes.
struct SpectralGradient {
  const double* derivative;  ///< [b, k] g'(s)
  const double* curvature;   ///< [b, k] g''(s)
  const double* at_zero;     ///< [b] slope at zero
  const double* top;         ///< [b, k] ∂g/∂s₁ besides, or null
  double* values;            ///< [b, k] gradient in the values: diag(UᵀCV)
};

/// Factors of the kept rows; methods [b] as batched_svd gives them.
void spectral_factors(const MatricesView& x, const uint8_t* mask, const SpectralFactors& out,
                      int8_t* methods, int threads, Isa isa);
/// out = U diag(values) Vᵀ in kept rows of defined matrices, elsewhere x.
void spectral_map(const SpectralMapView& view, int threads, Isa isa);
/// out = the gradient in x, elsewhere the incoming one.
void spectral_map_backward(const SpectralMapView& view, const SpectralGradient& gradient,
                           int threads, Isa isa);

}  // namespace aniso::cpu
