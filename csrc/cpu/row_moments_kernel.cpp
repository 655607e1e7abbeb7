// The serial kernel of row_moments, compiled once per instruction set (see simd.hpp): builtins
// instead of <cmath> and <algorithm>, whose inline functions would be shared between them.
//
// Rows are taken GROUP at a time. First pass over the group: widen half precision to float32 and
// take the norms (the only read from memory). Second pass: columns outside, rows inside, so that
// the float64 accumulators of a vector of columns stay in registers over the whole group.
#include "cpu/row_moments.hpp"
#include "cpu/simd.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

// Rows held at once. Measured on 768 columns (2 cores, 2 MiB of L2 each): 8 rows of float32 run at
// 21 GB/s against 19 for 16, 16 widened rows at 12 GB/s against 11 for 8.
template <class Source>
constexpr int GROUP = sizeof(Source) == 2 ? ROW_MOMENTS_SCRATCH : 8;
constexpr double MIN_SAFE_SQUARES = 1e-280;
constexpr double MAX_SAFE_SQUARES = 1e290;

// Vectors taken together: two independent chains hide the latency of an addition.
constexpr int PACK = 2;

template <class T>
void widen_row(const T* src, float* dst, int64_t d) {
  constexpr int64_t WIDTH = sizeof(f32s) / sizeof(float);
  int64_t k = 0;
  for (; k + WIDTH <= d; k += WIDTH) store(dst + k, widen(src + k));
  for (; k < d; ++k) dst[k] = widen1(src + k);
}

template <class T>
double sum_of_squares(const T* row, int64_t d) {
  f64s acc[4] = {};
  int64_t k = 0;
  for (; k + 4 * LANES <= d; k += 4 * LANES) {
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

// A row whose float64 squares leave the safe range: its power-of-two scale brings max|x| to [1, 2).
struct Extreme {
  double scale;  // 0 when a value is not finite
  double norm_of_scaled;
};

Extreme measure_extreme(const double* row, int64_t d) {
  double largest = 0.0;
  for (int64_t k = 0; k < d; ++k) {
    if (!(__builtin_fabs(row[k]) <= __DBL_MAX__)) return {0.0, 0.0};
    largest = max_of(largest, __builtin_fabs(row[k]));
  }
  if (largest == 0.0) return {1.0, 0.0};
  const double scale = __builtin_scalbn(1.0, -max_of(__builtin_ilogb(largest), -1022));
  double squares = 0.0;
  for (int64_t k = 0; k < d; ++k) squares += (row[k] * scale) * (row[k] * scale);
  return {scale, __builtin_sqrt(squares)};
}

struct Direction {
  double inverse;   // 1/‖x‖
  double inverse2;  // 1/‖x‖²
};

/// One part's accumulators; abs_max holds squares until finish() when T is narrower than float64.
template <class T>
class Accumulator {
 public:
  Accumulator(const RowMomentsView& out, int64_t d) : out_(out), d_(d) {}

  void count_row(double norm) {
    out_.counts[0] += 1;
    out_.counts[1] += norm == 0.0;
    out_.norm_sums[0] += norm;
    out_.norm_sums[1] += norm * norm;
    out_.norm_sums[2] += (norm * norm) * (norm * norm);
    if (norm < out_.norm_range[0]) out_.norm_range[0] = norm;
    if (norm > out_.norm_range[1]) out_.norm_range[1] = norm;
  }
  void count_nonfinite() { out_.counts[2] += 1; }
  void count_masked() { out_.counts[3] += 1; }

  /// Adds `count` rows; reads `upcoming` (row j of the next group) ahead of its use.
  template <class Source>
  void add_columns(const T* const* rows, const Direction* directions, int count,
                   const Source* const* upcoming) {
    constexpr int64_t STEP = PACK * LANES;
    constexpr int64_t PER_LINE = 64 / sizeof(Source);
    int64_t k = 0;
    for (; k + STEP <= d_; k += STEP) {
      if (k % PER_LINE == 0) {
        for (int j = 0; j < GROUP<Source>; ++j) __builtin_prefetch(upcoming[j] + k, 0, 2);
      }
      add_at<f64s, PACK>(rows, directions, count, k);
    }
    for (; k < d_; ++k) add_at<double, 1>(rows, directions, count, k);
  }

  void add_extreme(const double* row, const Extreme& e) {
    for (int64_t k = 0; k < d_; ++k) {
      const double x = row[k], unit = x * e.scale / e.norm_of_scaled;
      out_.sums[k] += x;
      out_.sums[d_ + k] += unit;
      out_.sums[2 * d_ + k] += x * x;
      out_.sums[3 * d_ + k] += unit * unit;
      out_.abs_max[k] = max_of(out_.abs_max[k], __builtin_fabs(x));
    }
  }

  void finish() {
    if (sizeof(T) == sizeof(double)) return;
    for (int64_t k = 0; k < d_; ++k) out_.abs_max[k] = __builtin_sqrt(out_.abs_max[k]);
  }

 private:
  template <class V>
  static void add_to(double* p, V v) {
    store(p, load<V>(p) + v);
  }

  template <class V, int P>
  void add_at(const T* const* rows, const Direction* directions, int count, int64_t k) {
    constexpr int WIDTH = sizeof(V) / sizeof(double);
    V sum[P]{}, unit_sum[P]{}, square_sum[P]{}, unit_square_sum[P]{}, largest[P]{};
    for (int j = 0; j < count; ++j) {
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) {
        const V x = load<V>(rows[j] + k + p * WIDTH);
        const V square = x * x;
        sum[p] += x;
        unit_sum[p] += x * directions[j].inverse;
        square_sum[p] += square;
        unit_square_sum[p] += square * directions[j].inverse2;
        // The square of a float32 is exact in float64: its root gives |x| back exactly.
        largest[p] = max_of(largest[p], sizeof(T) == sizeof(double) ? max_of(x, -x) : square);
      }
    }
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) {
      const int64_t at = k + p * WIDTH;
      add_to(out_.sums + at, sum[p]);
      add_to(out_.sums + d_ + at, unit_sum[p]);
      add_to(out_.sums + 2 * d_ + at, square_sum[p]);
      add_to(out_.sums + 3 * d_ + at, unit_square_sum[p]);
      store(out_.abs_max + at, max_of(load<V>(out_.abs_max + at), largest[p]));
    }
  }

  RowMomentsView out_;
  int64_t d_;
};

/// The rows of one group that have a direction, ready for the second pass.
template <class Source, class T>
class Group {
 public:
  Group(Accumulator<T>& sums, int64_t d, float* scratch) : sums_(sums), d_(d), scratch_(scratch) {}

  void take(const Source* source) {
    const T* row = widened(source);
    const double squares = sum_of_squares(row, d_);
    if (squares >= MIN_SAFE_SQUARES && squares <= MAX_SAFE_SQUARES) {
      const double norm = __builtin_sqrt(squares);
      sums_.count_row(norm);
      rows_[count_] = row;
      directions_[count_] = {1.0 / norm, 1.0 / squares};
      ++count_;
    } else {
      take_unusual(row, squares);
    }
  }

  void flush(const Source* const* upcoming) {
    if (count_ > 0) sums_.add_columns(rows_, directions_, count_, upcoming);
    count_ = 0;
  }

 private:
  const T* widened(const Source* source) {
    if constexpr (sizeof(Source) == sizeof(T)) {
      return source;
    } else {
      float* row = scratch_ + count_ * d_;
      widen_row(source, row, d_);
      return row;
    }
  }

  // Zero rows, rows that are not finite, and float64 rows whose squares over- or underflow.
  void take_unusual(const T* row, double squares) {
    if constexpr (sizeof(T) == sizeof(double)) {
      const Extreme extreme = measure_extreme(row, d_);
      if (extreme.scale == 0.0) return sums_.count_nonfinite();
      sums_.count_row(extreme.norm_of_scaled / extreme.scale);
      if (extreme.norm_of_scaled > 0.0) sums_.add_extreme(row, extreme);
    } else if (squares == 0.0) {
      sums_.count_row(0.0);
    } else {
      sums_.count_nonfinite();
    }
  }

  Accumulator<T>& sums_;
  int64_t d_;
  float* scratch_;
  const T* rows_[GROUP<Source>];
  Direction directions_[GROUP<Source>];
  int count_ = 0;
};

template <class Source, class T>
void run(const RowsView& rows, const MaskView& mask, int64_t begin, int64_t end,
         const RowMomentsView& out, float* scratch) {
  const Source* data = static_cast<const Source*>(rows.data);
  Accumulator<T> sums(out, rows.d);
  Group<Source, T> group(sums, rows.d, scratch);
  for (int64_t first = begin; first < end; first += GROUP<Source>) {
    const Source* upcoming[GROUP<Source>];
    for (int j = 0; j < GROUP<Source>; ++j) {
      const int64_t i = first + j, ahead = i + GROUP<Source>;
      const int64_t next = ahead < end ? ahead : end - 1;
      upcoming[j] = data + next * rows.row_stride;
      if (i >= end) continue;
      if (mask.data != nullptr && mask.data[i * mask.stride] == 0) {
        sums.count_masked();
      } else {
        group.take(data + i * rows.row_stride);
      }
    }
    group.flush(upcoming);
  }
  sums.finish();
}

}  // namespace

void row_moments_part(const RowsView& rows, const MaskView& mask, int64_t begin, int64_t end,
                      const RowMomentsView& out, float* scratch) {
  switch (rows.dtype) {
    case DType::f64:
      return run<double, double>(rows, mask, begin, end, out, scratch);
    case DType::f32:
      return run<float, float>(rows, mask, begin, end, out, scratch);
    case DType::f16:
      return run<f16, float>(rows, mask, begin, end, out, scratch);
    case DType::bf16:
      return run<bf16, float>(rows, mask, begin, end, out, scratch);
  }
}

}  // namespace aniso::cpu::ANISO_ISA
