// The direction of a row, exact to float64 but held in float32.
#pragma once

namespace aniso::cpu {

/// Scales of one row: x̂ = x · 2^exponent · (inverse + inverse_low); both 0 without a direction.
struct RowScale {
  const void* row;
  float exponent;
  float inverse;
  float inverse_low;
};

}  // namespace aniso::cpu
