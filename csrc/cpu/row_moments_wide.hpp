// Sums over rows of float32 and float64, accumulated in float64; but for Σx̂_k², where the rows' own
// precision will do over SPAN rows: nothing cancels within that sum.
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
  // Well within what 1/‖x‖ in float32 allows.
  static constexpr double MIN_SQUARES = 1e-72;
  static constexpr double MAX_SQUARES = 1e72;
};
template <>
struct VectorOf<double> {
  typedef f64s type;
  // Squares outside may over- or underflow.
  static constexpr double MIN_SQUARES = 1e-280;
  static constexpr double MAX_SQUARES = 1e290;
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
  static constexpr double MIN_SQUARES = VectorOf<T>::MIN_SQUARES;
  static constexpr double MAX_SQUARES = VectorOf<T>::MAX_SQUARES;

  /// `ahead`: elements from a row to the one that is asked for. Scratch: ROW_MOMENTS_SCRATCH zeroed
  /// bytes per column.
  WideSums(const RowMomentsView& out, int64_t d, int64_t ahead, void* scratch)
      : out_(out),
        d_(d),
        ahead_(ahead),
        chunked_(d / CHUNK * CHUNK),
        unit_squares_(static_cast<T*>(scratch)),
        largest_(unit_squares_ + chunked_) {}

  static int group(int64_t) { return MAX_GROUP; }

  template <int R>
  void squares(const T* const* rows, double* out) const {
    f64s acc[R][PACK] = {};
    for (int64_t k = 0; k < chunked_; k += CHUNK) {
      ask_ahead<R, CHUNK>(rows, ahead_, k, true);
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

  void add(const T* const* rows, const double* inverses, int count) {
    int j = 0;
    for (; j + MAX_GROUP <= count; j += MAX_GROUP) add_rows<MAX_GROUP>(rows + j, inverses + j);
    for (; j < count; ++j) add_rows<1>(rows + j, inverses + j);
    pending_ += count;
    if (pending_ + MAX_GROUP > SPAN) promote();
  }

  void add_one(int64_t k, double x, double unit) {
    out_.sums[k] += x;
    out_.sums[d_ + k] += unit;
    out_.sums[2 * d_ + k] += x * x;
    out_.sums[3 * d_ + k] += unit * unit;
    out_.abs_max[k] = max_of(out_.abs_max[k], __builtin_fabs(x));
  }

  void finish() {
    promote();
    for (int64_t k = 0; k < chunked_; ++k) {
      out_.abs_max[k] = max_of(out_.abs_max[k], static_cast<double>(largest_[k]));
      largest_[k] = 0;
    }
  }

 private:
  // Two numbers of a column for which no conversion to float64, as dear as two additions, is made.
  typedef typename VectorOf<T>::type Vector;
  static constexpr int64_t VECTOR = sizeof(Vector) / sizeof(T);  // columns
  static constexpr int VECTORS = CHUNK / VECTOR;

  template <int R>
  void add_rows(const T* const* rows, const double* inverses) {
    // Copies, which the stores below cannot change.
    const T* row[R];
    f64s inverse[R];
    Vector inverse_narrow[R];
    for (int j = 0; j < R; ++j) {
      row[j] = rows[j];
      inverse[j] = f64s{} + inverses[j];
      inverse_narrow[j] = Vector{} + static_cast<T>(inverses[j]);
    }
    const int64_t d = d_, ahead = ahead_, chunked = chunked_;
    double* const sums = out_.sums;
    T* const unit_squares = unit_squares_;
    T* const largest = largest_;
    for (int64_t k = 0; k < chunked; k += CHUNK) {
      ask_ahead<R, CHUNK>(row, ahead, k, false);
      // The sums themselves, not parts of them: nothing to clear and nothing to add in the end.
      f64s sum[3][PACK];
      Vector unit_square[VECTORS], most[VECTORS];
#pragma GCC unroll 3
      for (int s = 0; s < 3; ++s) {
#pragma GCC unroll 2
        for (int p = 0; p < PACK; ++p) sum[s][p] = load<f64s>(sums + s * d + k + p * LANES);
      }
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) {
        unit_square[v] = load_as<Vector>(unit_squares + k + v * VECTOR);
        most[v] = load_as<Vector>(largest + k + v * VECTOR);
      }
#pragma GCC unroll 4
      for (int j = 0; j < R; ++j) {
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
          const Vector x = load_as<Vector>(row[j] + k + v * VECTOR);
          const Vector unit = x * inverse_narrow[j];
          unit_square[v] += unit * unit;
          most[v] = max_abs(most[v], x);
        }
#pragma GCC unroll 2
        for (int p = 0; p < PACK; ++p) {
          const f64s x = load<f64s>(row[j] + k + p * LANES);
          sum[0][p] += x;
          sum[1][p] += x * inverse[j];
          sum[2][p] += x * x;
        }
      }
#pragma GCC unroll 3
      for (int s = 0; s < 3; ++s) {
#pragma GCC unroll 2
        for (int p = 0; p < PACK; ++p) store(sums + s * d + k + p * LANES, sum[s][p]);
      }
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) {
        store(unit_squares + k + v * VECTOR, unit_square[v]);
        store(largest + k + v * VECTOR, most[v]);
      }
    }
  }

  void promote() {
    pending_ = 0;
    for (int64_t k = 0; k < chunked_; ++k) {
      out_.sums[3 * d_ + k] += static_cast<double>(unit_squares_[k]);
      unit_squares_[k] = 0;
    }
  }

  RowMomentsView out_;
  int64_t d_;
  int64_t ahead_;
  int64_t chunked_;  // columns in whole chunks
  int pending_ = 0;  // rows in unit_squares_
  T* unit_squares_;  // Σx̂_k²
  T* largest_;       // max |x_k|
};

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
