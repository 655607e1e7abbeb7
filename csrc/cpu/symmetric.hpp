// Sums of a lower triangle into both halves of a symmetric matrix.
#pragma once

#include "cpu/isa.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

/// Side of the squares that are turned in the first-level cache.
constexpr int64_t TURNED_SIDE = 32;

inline __attribute__((always_inline)) void add_square_of(const double* square, int64_t stride,
                                                         int64_t rows, int64_t columns,
                                                         bool diagonal, int64_t d, double* lower,
                                                         double* upper) {
  double turned[TURNED_SIDE * TURNED_SIDE];
  for (int64_t i = 0; i < rows; ++i) {
    const double* sums = square + i * stride;
    const int64_t end = diagonal ? i + 1 : columns;
    for (int64_t j = 0; j < end; ++j) lower[i * d + j] += sums[j];
    for (int64_t j = 0; j < end; ++j) turned[j * TURNED_SIDE + i] = sums[j];
  }
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = diagonal ? j + 1 : 0; i < rows; ++i) {
      upper[j * d + i] += turned[j * TURNED_SIDE + i];
    }
  }
}

/// Adds rows × columns sums, rows `stride` apart, to `lower`, rows d apart, and transposed to
/// `upper`. On the `diagonal` only what stands on it or below is read, and it is added once.
inline void add_square(const double* square, int64_t stride, int64_t rows, int64_t columns,
                       bool diagonal, int64_t d, double* lower, double* upper) {
  if (rows == TURNED_SIDE && columns == TURNED_SIDE &&
      !diagonal) {  // constants the compiler can unroll
    add_square_of(square, stride, TURNED_SIDE, TURNED_SIDE, false, d, lower, upper);
  } else {
    add_square_of(square, stride, rows, columns, diagonal, d, lower, upper);
  }
}

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
