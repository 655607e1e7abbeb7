// Sums over rows of half precision (bfloat16, float16): in float32 first, then in float64.
//
// A conversion to float64 costs as much as two additions, so no value meets one by itself: sums run
// over up to SPAN rows in float32 before they are added in float64. The squared norms, on which all
// else hangs, carry the rounding errors of their sums along: norms are good to 1e-7.
#pragma once

#include "cpu/row_moments.hpp"
#include "cpu/row_moments_rows.hpp"
#include "cpu/simd.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

/// Accumulates bf16 or f16 rows. Within a chunk of CHUNK columns, sums lie in the order of
/// `Halves<T>` until finish().
template <class T>
class HalfSums {
 public:
  static constexpr int64_t CHUNK = sizeof(u16s) / sizeof(uint16_t);  // columns at once
  static constexpr int MIN_GROUP = STREAMS;
  static constexpr int MAX_GROUP = 4 * STREAMS;
  // Outside, squares or their sums might leave float32.
  static constexpr double MIN_SQUARES = 1e-24;
  static constexpr double MAX_SQUARES = 1e36;
  static_assert(SPAN * MAX_SQUARES < __FLT_MAX__);

  /// `ahead`: elements from a row to the one that is asked for. Scratch: ROW_MOMENTS_SCRATCH zeroed
  /// bytes per column.
  HalfSums(const RowMomentsView& out, int64_t d, int64_t ahead, void* scratch)
      : out_(out),
        d_(d),
        ahead_(ahead),
        chunked_(d / CHUNK * CHUNK),
        partial_(static_cast<float*>(scratch)),
        largest_(reinterpret_cast<uint16_t*>(partial_ + 4 * d)) {}

  /// Rows held at once: few, so that they and the partial sums stay in the first-level cache; more
  /// where the partial sums alone do not fit there and every visit to them costs.
  static int group(int64_t d) { return d <= 1024 ? MIN_GROUP : MAX_GROUP; }

  template <int R>
  void squares(const T* const* rows, double* out) const {
    f32s sum[R] = {}, error[R] = {};
    const auto take = [&](int j, f32s term) {
      const f32s next = sum[j] + term;
      error[j] += term - (next - sum[j]);  // what `next` rounds away
      sum[j] = next;
    };
    int64_t k = 0;
    for (; k + 2 * CHUNK <= chunked_; k += 2 * CHUNK) {
      ask_ahead<R, 2 * CHUNK>(rows, ahead_, k, true);
#pragma GCC unroll 4
      for (int j = 0; j < R; ++j)
        take(j, add_squares(add_squares(f32s{}, rows[j] + k), rows[j] + k + CHUNK));
    }
    if (k < chunked_) {
      ask_ahead<R, CHUNK>(rows, ahead_, k, true);
#pragma GCC unroll 4
      for (int j = 0; j < R; ++j) take(j, add_squares(f32s{}, rows[j] + k));
    }
#pragma GCC unroll 4
    for (int j = 0; j < R; ++j) {
      out[j] = sum_lanes(low_as_f64(sum[j]) + high_as_f64(sum[j]) +
                         (low_as_f64(error[j]) + high_as_f64(error[j])));
    }
  }

  void add(const T* const* rows, const double* inverses, int count) {
    int j = 0;
    for (; j + MAX_GROUP <= count; j += MAX_GROUP) add_rows<MAX_GROUP>(rows + j, inverses + j);
    for (; j + MIN_GROUP <= count; j += MIN_GROUP) add_rows<MIN_GROUP>(rows + j, inverses + j);
    for (; j < count; ++j) add_rows<1>(rows + j, inverses + j);
    pending_ += count;
    if (pending_ + MAX_GROUP > SPAN) promote();
  }

  void add_one(int64_t k, double x, double unit) {
    const int64_t at = slot(k);
    out_.sums[at] += x;
    out_.sums[d_ + at] += unit;
    out_.sums[2 * d_ + at] += x * x;
    out_.sums[3 * d_ + at] += unit * unit;
    out_.abs_max[k] = max_of(out_.abs_max[k], __builtin_fabs(x));
  }

  void finish() {
    promote();
    for (int64_t k = 0; k < chunked_; ++k) {
      const T bits{largest_[k]};
      out_.abs_max[k] = max_of(out_.abs_max[k], value(bits));
      largest_[k] = 0;
    }
    for (int sum = 0; sum < 4; ++sum) {
      for (int64_t first = 0; first < chunked_; first += CHUNK)
        restore(out_.sums + sum * d_ + first);
    }
  }

 private:
  /// Where column k lies.
  int64_t slot(int64_t k) const {
    return k < chunked_ ? k / CHUNK * CHUNK + Halves<T>::slot(k % CHUNK) : k;
  }

  static void restore(double* chunk) {
    double columns[CHUNK];
    for (int64_t k = 0; k < CHUNK; ++k) columns[k] = chunk[Halves<T>::slot(k)];
    for (int64_t k = 0; k < CHUNK; ++k) chunk[k] = columns[k];
  }

  /// Squares of 8 and 11 bits are exact in float32, sums of four nearly so: of normal rows they
  /// lose 3e-9, of rows that one number makes up 1e-7.
  static f32s add_squares(f32s sum, const T* chunk) {
    f32s x[2];
    Halves<T>::widen(load_as<u16s>(chunk), x);
    return sum + x[0] * x[0] + x[1] * x[1];
  }

  static void add_to(double* p, f32s v) {
    store(p, load<f64s>(p) + low_as_f64(v));
    store(p + LANES, load<f64s>(p + LANES) + high_as_f64(v));
  }

  template <int R>
  void add_rows(const T* const* rows, const double* inverses) {
    // Copies, which the stores below cannot change.
    const T* row[R];
    float inverse[R], inverse2[R];
    for (int j = 0; j < R; ++j) {
      row[j] = rows[j];
      inverse[j] = static_cast<float>(inverses[j]);
      inverse2[j] = static_cast<float>(inverses[j] * inverses[j]);
    }
    const int64_t ahead = ahead_, chunked = chunked_;
    float* partial = partial_;
    uint16_t* const largest = largest_;
    for (int64_t k = 0; k < chunked; k += CHUNK, partial += 4 * CHUNK) {
      ask_ahead<R, CHUNK>(row, ahead, k, false);
      f32s sums[4][2];
#pragma GCC unroll 8
      for (int s = 0; s < 8; ++s) sums[s / 2][s % 2] = load_as<f32s>(partial + s * LANES * 2);
      u16s most = load_as<u16s>(largest + k);
#pragma GCC unroll 4
      for (int j = 0; j < R; ++j) {
        const u16s bits = load_as<u16s>(row[j] + k);
        most = max_of(most, bits & uint16_t{0x7fff});
        f32s x[2];
        Halves<T>::widen(bits, x);
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const f32s square = x[i] * x[i];
          sums[0][i] += x[i];
          sums[1][i] += x[i] * inverse[j];
          sums[2][i] += square;
          sums[3][i] += square * inverse2[j];
        }
      }
#pragma GCC unroll 8
      for (int s = 0; s < 8; ++s) store(partial + s * LANES * 2, sums[s / 2][s % 2]);
      store(largest + k, most);
    }
  }

  void promote() {
    pending_ = 0;
    for (int64_t k = 0; k < chunked_; k += CHUNK) {
      f32s sums[4][2];
      std::memcpy(sums, partial_ + 4 * k, sizeof sums);
      std::memset(partial_ + 4 * k, 0, sizeof sums);
#pragma GCC unroll 4
      for (int sum = 0; sum < 4; ++sum) {
        add_to(out_.sums + sum * d_ + k, sums[sum][0]);
        add_to(out_.sums + sum * d_ + k + CHUNK / 2, sums[sum][1]);
      }
    }
  }

  RowMomentsView out_;
  int64_t d_;
  int64_t ahead_;
  int64_t chunked_;    // columns in whole chunks
  int pending_ = 0;    // rows in the partial sums
  float* partial_;     // per chunk: its part of the four sums
  uint16_t* largest_;  // bits of max|x_k|, ordered as the numbers are
};

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
