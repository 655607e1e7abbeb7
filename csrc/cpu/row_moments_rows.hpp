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

// How many rows ahead of a group, each in its stream, lines are asked for.
constexpr int64_t ROWS_AHEAD = 2;

/// Asks for lines of the rows to come while a pass takes STEP columns at k of R rows. Each of the
/// two passes over a group asks for half of a row's lines, from column `first` on, and for the
/// streams in turn: memory is read evenly throughout.
template <int R, int64_t STEP, class T>
inline void ask_ahead(const T* const* rows, int64_t ahead, int64_t first, int64_t k) {
  constexpr int64_t TWO_LINES = 128 / sizeof(T);  // columns; of them, each pass asks for one line
  constexpr int64_t EVERY = STEP < TWO_LINES ? TWO_LINES / STEP : 1;
  for (int64_t j = k / STEP % EVERY; j < R; j += EVERY) {
    for (int64_t i = 0; i < STEP; i += TWO_LINES)
      __builtin_prefetch(rows[j] + ahead + first + (k + i) / 2, 0, 2);
  }
}

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
