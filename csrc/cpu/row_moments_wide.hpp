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

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef f32s type;
};
template <>
struct VectorOf<double> {
  typedef f64s type;
};

/// Accumulates float32 or float64 rows.
template <class T>
class WideSums {
 public:
  // Vectors taken together: two independent chains hide the latency of an addition.
  static constexpr int PACK = 2;
  static constexpr int64_t CHUNK = PACK * LANES;  // columns at once
  // Rows held at once (measured: 8 and 16 are no faster).
  static constexpr int MAX_GROUP = STREAMS;
  // Squares of float64 values may over- or underflow outside; those of float32 cannot.
  static constexpr double MIN_SQUARES = 1e-280;
  static constexpr double MAX_SQUARES = 1e290;

  /// `ahead`: elements from a row to the one that is asked for. Scratch: ROW_MOMENTS_SCRATCH zeroed
  /// bytes per column.
  WideSums(const RowMomentsView& out, int64_t d, int64_t ahead, void* scratch)
      : out_(out),
        d_(d),
        ahead_(ahead),
        chunked_(d / CHUNK * CHUNK),
        largest_(static_cast<T*>(scratch)) {}

  static int group(int64_t) { return MAX_GROUP; }

  template <int R>
  void squares(const T* const* rows, double* out) const {
    f64s acc[R][PACK] = {};
    for (int64_t k = 0; k < chunked_; k += CHUNK) {
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
    for (int j = 0; j < R; ++j) out[j] = sum_lanes(acc[j][0] + acc[j][1]);
  }

  void add(const T* const* rows, const Direction* directions, int count) {
    int j = 0;
    for (; j + MAX_GROUP <= count; j += MAX_GROUP) add_rows<MAX_GROUP>(rows + j, directions + j);
    for (; j < count; ++j) add_rows<1>(rows + j, directions + j);
  }

  void add_one(int64_t k, double x, double unit) {
    out_.sums[k] += x;
    out_.sums[d_ + k] += unit;
    out_.sums[2 * d_ + k] += x * x;
    out_.sums[3 * d_ + k] += unit * unit;
    out_.abs_max[k] = max_of(out_.abs_max[k], __builtin_fabs(x));
  }

  void finish() {
    for (int64_t k = 0; k < chunked_; ++k) {
      out_.abs_max[k] = max_of(out_.abs_max[k], static_cast<double>(largest_[k]));
      largest_[k] = 0;
    }
  }

 private:
  // A conversion to float64 costs as much as two additions: the largest are found without it.
  typedef typename VectorOf<T>::type Vector;
  static constexpr int64_t VECTOR = sizeof(Vector) / sizeof(T);  // columns
  static constexpr int VECTORS = CHUNK / VECTOR;

  template <int R>
  void add_rows(const T* const* rows, const Direction* directions) {
    for (int64_t k = 0; k < chunked_; k += CHUNK) {
      ask_ahead<R, CHUNK>(rows, ahead_, d_ / 2, k);
      add_chunk<R>(rows, directions, k);
    }
  }

  template <int R>
  __attribute__((always_inline)) void add_chunk(const T* const* rows, const Direction* directions,
                                                int64_t k) {
    // The sums themselves, not parts of them: nothing to clear and nothing to add in the end.
    double* const at[4] = {out_.sums + k, out_.sums + d_ + k, out_.sums + 2 * d_ + k,
                           out_.sums + 3 * d_ + k};
    T* const largest_at = largest_ + k;
    f64s sums[4][PACK];
    Vector largest[VECTORS];
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
#pragma GCC unroll 2
      for (int p = 0; p < PACK; ++p) sums[s][p] = load<f64s>(at[s] + p * LANES);
    }
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) largest[v] = load_as<Vector>(largest_at + v * VECTOR);
#pragma GCC unroll 4
    for (int j = 0; j < R; ++j) {
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v)
        largest[v] = max_abs(largest[v], load_as<Vector>(rows[j] + k + v * VECTOR));
#pragma GCC unroll 2
      for (int p = 0; p < PACK; ++p) {
        const f64s x = load<f64s>(rows[j] + k + p * LANES);
        const f64s square = x * x;
        sums[0][p] += x;
        sums[1][p] += x * directions[j].inverse;
        sums[2][p] += square;
        sums[3][p] += square * directions[j].inverse2;
      }
    }
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
#pragma GCC unroll 2
      for (int p = 0; p < PACK; ++p) store(at[s] + p * LANES, sums[s][p]);
    }
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; ++v) store(largest_at + v * VECTOR, largest[v]);
  }

  RowMomentsView out_;
  int64_t d_;
  int64_t ahead_;
  int64_t chunked_;  // columns in whole chunks
  T* largest_;       // max |x_k|
};

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
