// Sums over rows of float32 and float64, accumulated in float64 throughout.
//
// Columns outside, rows of the group inside: the accumulators of a vector of columns stay in
// registers over the whole group.
#pragma once

#include "cpu/row_moments.hpp"
#include "cpu/row_moments_rows.hpp"
#include "cpu/simd.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

/// Accumulates float32 (exactly squared in float64) or float64 rows.
template <class T>
class WideSums {
 public:
  // Vectors taken together: two independent chains hide the latency of an addition.
  static constexpr int PACK = 2;
  static constexpr int64_t CHUNK = PACK * LANES;  // columns at once
  // Rows held at once. Measured on 768 columns of float32, one thread: 4 rows run at 0.77 of the
  // read bandwidth, 8 at 0.74.
  static constexpr int MAX_GROUP = 4;
  // Squares of float64 values may over- or underflow outside; those of float32 cannot.
  static constexpr double MIN_SQUARES = 1e-280;
  static constexpr double MAX_SQUARES = 1e290;

  WideSums(const RowMomentsView& out, int64_t d, void*) : out_(out), d_(d) {}

  static int group(int64_t) { return MAX_GROUP; }

  static double squares(const T* row, int64_t d, ReadAhead& ahead) {
    f64s acc[4] = {};
    int64_t k = 0;
    for (; k + 4 * LANES <= d; k += 4 * LANES) {
      ahead.next();
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const f64s x = load<f64s>(row + k + i * LANES);
        acc[i] += x * x;
      }
    }
    double total = sum_lanes((acc[0] + acc[1]) + (acc[2] + acc[3]));
    for (; k < d; ++k) total += static_cast<double>(row[k]) * row[k];
    return total;
  }

  void add(const T* const* rows, const Direction* directions, int count, ReadAhead& ahead) {
    int64_t k = 0;
    for (; k + CHUNK <= d_; k += CHUNK) {
      if (count == MAX_GROUP) {  // a constant the compiler can unroll
        add_at<f64s, PACK>(rows, directions, MAX_GROUP, k, ahead);
      } else {
        add_at<f64s, PACK>(rows, directions, count, k, ahead);
      }
    }
    for (; k < d_; ++k) add_at<double, 1>(rows, directions, count, k, ahead);
  }

  void add_unusual(int64_t k, double x, double unit) {
    out_.sums[k] += x;
    out_.sums[d_ + k] += unit;
    out_.sums[2 * d_ + k] += x * x;
    out_.sums[3 * d_ + k] += unit * unit;
    out_.abs_max[k] = max_of(out_.abs_max[k], exact_squares() ? x * x : __builtin_fabs(x));
  }

  void finish() {
    if (!exact_squares()) return;
    for (int64_t k = 0; k < d_; ++k) out_.abs_max[k] = __builtin_sqrt(out_.abs_max[k]);
  }

 private:
  // The square of a float32 is exact in float64: abs_max holds squares until the root at the end.
  static constexpr bool exact_squares() { return sizeof(T) == sizeof(float); }

  template <class V, int P>
  __attribute__((always_inline)) void add_at(const T* const* rows, const Direction* directions,
                                             int count, int64_t k, ReadAhead& ahead) {
    constexpr int WIDTH = sizeof(V) / sizeof(double);
    // The sums themselves, not parts of them: nothing to clear and nothing to add in the end.
    V sums[4][P], largest[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s) sums[s][p] = load<V>(out_.sums + s * d_ + k + p * WIDTH);
      largest[p] = load<V>(out_.abs_max + k + p * WIDTH);
    }
    for (int j = 0; j < count; ++j) {
      if (j % 2 == 0) ahead.next();
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) {
        const V x = load<V>(rows[j] + k + p * WIDTH);
        const V square = x * x;
        sums[0][p] += x;
        sums[1][p] += x * directions[j].inverse;
        sums[2][p] += square;
        sums[3][p] += square * directions[j].inverse2;
        largest[p] = max_of(largest[p], exact_squares() ? square : max_of(x, -x));
      }
    }
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s) store(out_.sums + s * d_ + k + p * WIDTH, sums[s][p]);
      store(out_.abs_max + k + p * WIDTH, largest[p]);
    }
  }

  RowMomentsView out_;
  int64_t d_;
};

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
