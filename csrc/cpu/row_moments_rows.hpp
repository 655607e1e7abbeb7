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

/// Asks for cache lines a fixed distance ahead of a stream, one at a time: the two passes over a
/// group each take half of its lines, so that requests to memory are spread evenly over both.
/// (Measured: requests in bursts, or left to the hardware, add their whole time to the kernel's.)
class ReadAhead {
 public:
  explicit ReadAhead(int64_t distance) : distance_(distance) {}

  void start(const void* stream) { at_ = static_cast<const char*>(stream) + distance_; }
  void next() {
    __builtin_prefetch(at_, 0, 2);
    at_ += LINE;
  }

  static constexpr int64_t LINE = 64;

 private:
  int64_t distance_;
  const char* at_ = nullptr;
};

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
