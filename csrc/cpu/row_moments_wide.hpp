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
  // Rows held at once (measured: 8 and 16 are no faster).
  static constexpr int MAX_GROUP = 4;
  // Squares of float64 values may over- or underflow outside; those of float32 cannot.
  static constexpr double MIN_SQUARES = 1e-280;
  static constexpr double MAX_SQUARES = 1e290;

  /// `ahead`: elements from a row to the one that is asked for.
  WideSums(const RowMomentsView& out, int64_t d, int64_t ahead, void*)
      : out_(out), d_(d), ahead_(ahead) {}

  static int group(int64_t) { return MAX_GROUP; }

  template <int R>
  void squares(const T* const* rows, double* out) const {
    f64s acc[R][PACK] = {};
    int64_t k = 0;
    for (; k + CHUNK <= d_; k += CHUNK) {
      ask_ahead<R, CHUNK>(rows, ahead_, 0, k);
#pragma GCC unroll 4
      for (int j = 0; j < R; ++j) {
#pragma GCC unroll 2
        for (int p = 0; p < PACK; ++p) {
          const f64s x = load<f64s>(rows[j] + k + p * LANES);
          acc[j][p] += x * x;
        }
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < R; ++j) {
      out[j] = sum_lanes(acc[j][0] + acc[j][1]);
      for (int64_t c = k; c < d_; ++c) out[j] += static_cast<double>(rows[j][c]) * rows[j][c];
    }
  }

  void add(const T* const* rows, const Direction* directions, int count) {
    int j = 0;
    for (; j + MAX_GROUP <= count; j += MAX_GROUP) add_rows<MAX_GROUP>(rows + j, directions + j);
    for (; j < count; ++j) add_rows<1>(rows + j, directions + j);
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

  template <int R>
  void add_rows(const T* const* rows, const Direction* directions) {
    int64_t k = 0;
    for (; k + CHUNK <= d_; k += CHUNK) {
      ask_ahead<R, CHUNK>(rows, ahead_, d_ / 2, k);
      add_at<R, f64s, PACK>(rows, directions, k);
    }
    for (; k < d_; ++k) add_at<R, double, 1>(rows, directions, k);
  }

  template <int R, class V, int P>
  __attribute__((always_inline)) void add_at(const T* const* rows, const Direction* directions,
                                             int64_t k) {
    constexpr int WIDTH = sizeof(V) / sizeof(double);
    // The sums themselves, not parts of them: nothing to clear and nothing to add in the end.
    double* const at[4] = {out_.sums + k, out_.sums + d_ + k, out_.sums + 2 * d_ + k,
                           out_.sums + 3 * d_ + k};
    double* const largest_at = out_.abs_max + k;
    V sums[4][P], largest[P];
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s) sums[s][p] = load<V>(at[s] + p * WIDTH);
      largest[p] = load<V>(largest_at + p * WIDTH);
    }
#pragma GCC unroll 4
    for (int j = 0; j < R; ++j) {
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
      for (int s = 0; s < 4; ++s) store(at[s] + p * WIDTH, sums[s][p]);
      store(largest_at + p * WIDTH, largest[p]);
    }
  }

  RowMomentsView out_;
  int64_t d_;
  int64_t ahead_;
};

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
