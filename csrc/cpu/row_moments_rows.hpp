// What the two accumulators of row_moments share: unusual rows and reading ahead.
#pragma once

#include "cpu/row_moments.hpp"
#include "cpu/simd.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

/// A row whose squares leave the safe range: a power of two brings max|x| to [1, 2).
struct Extreme {
  double scale;  // 0 when a value is not finite
  double norm_of_scaled;
};

template <class T>
Extreme measure_extreme(const T* row, int64_t d) {
  double largest = 0.0;
  for (int64_t k = 0; k < d; ++k) {
    const double magnitude = __builtin_fabs(value(row[k]));
    if (!(magnitude <= __DBL_MAX__)) return {0.0, 0.0};
    largest = max_of(largest, magnitude);
  }
  if (largest == 0.0) return {1.0, 0.0};
  const double scale = __builtin_scalbn(1.0, -max_of(__builtin_ilogb(largest), -1022));
  double squares = 0.0;
  for (int64_t k = 0; k < d; ++k) {
    const double scaled = value(row[k]) * scale;
    squares += scaled * scaled;
  }
  return {scale, __builtin_sqrt(squares)};
}

// Places that memory is read from at the same time; as many rows are worked on side by side.
constexpr int STREAMS = 4;

// Rows whose terms may meet in float32 before they are added in float64.
constexpr int SPAN = 128;

/// Asks for memory `ahead` elements from column k of R rows, while a pass takes STEP columns there.
/// The first pass over a group asks for one row of every STREAMS, the second, which takes longer,
/// for the others: memory is read evenly throughout.
template <int R, int64_t STEP, class T>
inline void ask_ahead(const T* const* rows, int64_t ahead, int64_t k, bool first) {
  constexpr int64_t LINE = 64 / sizeof(T);
  if constexpr (STEP < LINE) {
    if (k % LINE != 0) return;
  }
#pragma GCC unroll 16
  for (int j = 0; j < R; ++j) {
    if ((j % STREAMS == 0) != first) continue;
#pragma GCC unroll 2
    for (int64_t i = 0; i < STEP; i += LINE) {
      // As a number: the last rows ask for what lies beyond the array.
      const auto at = reinterpret_cast<uintptr_t>(rows[j]) + (k + i + ahead) * sizeof(T);
      __builtin_prefetch(reinterpret_cast<const void*>(at), 0, 2);
    }
  }
}

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
