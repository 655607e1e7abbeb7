// What the two accumulators of row_moments share: directions, unusual rows and reading ahead.
#pragma once

#include "cpu/row_moments.hpp"
#include "cpu/simd.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

struct Direction {
  double inverse;   // 1/‖x‖
  double inverse2;  // 1/‖x‖²
};

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

/// Asks for lines of the rows to come, `ahead` elements on, while a pass takes STEP columns at k of
/// R rows. Each of the two passes over a group asks for half of a row's lines, from column `first`
/// on, and for the rows in turn: memory is read evenly throughout.
template <int R, int64_t STEP, class T>
inline void ask_ahead(const T* const* rows, int64_t ahead, int64_t first, int64_t k) {
  constexpr int64_t TWO_LINES = 128 / sizeof(T);  // columns; of them, each pass asks for one line
  static_assert(STEP <= TWO_LINES);
  const int64_t bytes = (ahead + first + k / 2) * static_cast<int64_t>(sizeof(T));
  for (int64_t j = k / STEP % (TWO_LINES / STEP); j < R; j += TWO_LINES / STEP) {
    // As a number: the last rows ask for what lies beyond the array.
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(rows[j]) + bytes),
                       0, 2);
  }
}

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
