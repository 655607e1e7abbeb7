// The sums one call of row_moments adds to: the same layout on every device.
#pragma once

#include <cstdint>

namespace aniso {

/// Accumulators of row_moments (float64 / int64), contiguous; every kernel adds, none overwrites.
struct RowMomentsView {
  double* sums;        ///< [4, d]: Σx, Σx̂, Σx_k², Σx̂_k²
  double* norm_sums;   ///< [3]: Σ‖x‖, Σ‖x‖², Σ‖x‖⁴
  double* norm_range;  ///< [2]: min ‖x‖ (starts at +inf), max ‖x‖ (starts at 0)
  double* abs_max;     ///< [d]: max |x_k| (starts at 0)
  int64_t* counts;     ///< [4]: rows kept (zero rows included), zero, non-finite, masked
};

}  // namespace aniso
