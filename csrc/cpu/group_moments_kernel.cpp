// The serial kernel of group_moments, compiled once per instruction set (see simd.hpp).
//
// Rows of one run are taken a few at a time. First pass: their norms (the only read from memory).
// Second pass: their sums, from the cache, into one row of Σx and one of Σx̂: the group's own, or
// two in the first-level cache that leave only three products behind.
#include "cpu/group_moments.hpp"
#include "cpu/row_moments_rows.hpp"
#include "cpu/simd.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

constexpr int MAX_GROUP = 4;  // rows held at once, as in row_moments; STEP below counts on it
// Squares of float64 values may over- or underflow outside; those of narrower types cannot.
constexpr double MIN_SQUARES = 1e-280, MAX_SQUARES = 1e290;

/// Adds the rows of one run, of type T, to Σx and Σx̂; the first rows overwrite them where `fresh`.
template <class T>
class Run {
 public:
  Run(int64_t d, double* sum, double* unit_sum, bool fresh)
      : d_(d), sum_(sum), unit_sum_(unit_sum), fresh_(fresh) {}

  int64_t directions = 0;
  double square_norms = 0.0;

  /// `later` is a row of the next batch, which is asked for in the meantime.
  void take(const T* row, const T* later) {
    const double squares = squared_norm(row, later);
    if (squares >= MIN_SQUARES && squares <= MAX_SQUARES) {
      directions += 1;
      square_norms += squares;
      rows_[count_] = row;
      later_[count_] = later;
      inverse_[count_] = 1.0 / __builtin_sqrt(squares);
      if (++count_ == MAX_GROUP) flush();
    } else {
      take_unusual(row);
    }
  }

  void flush() {
    if (count_ == MAX_GROUP) {  // a constant the compiler can unroll
      add(MAX_GROUP);
    } else if (count_ > 0) {
      add(count_);
    }
    count_ = 0;
  }

 private:
  // Cache lines of a later row are asked for one at a time, spread over both passes: one for every
  // STEP columns in the second, as many as are left in the first.
  static constexpr int64_t STEP = 4 * LANES, LINE = 64 / sizeof(T);
  static constexpr int64_t FIRST_PASS = STEP > LINE ? STEP / LINE - 1 : 0;

  double squared_norm(const T* row, const T* later) const {
    f64s acc[4] = {};
    int64_t k = 0;
    for (; k + STEP <= d_; k += STEP) {
#pragma GCC unroll 3
      for (int64_t i = 0; i < FIRST_PASS; ++i, later += LINE) __builtin_prefetch(later, 0, 2);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const f64s x = load<f64s>(row + k + i * LANES);
        acc[i] += x * x;
      }
    }
    double total = sum_lanes((acc[0] + acc[1]) + (acc[2] + acc[3]));
    for (; k < d_; ++k) total += value(row[k]) * value(row[k]);
    return total;
  }

  __attribute__((always_inline)) void add(int count) {
    int64_t k = 0, line = d_ / STEP * FIRST_PASS * LINE;
    for (; k + STEP <= d_; k += STEP, line += LINE) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        if (i < count && line < d_) __builtin_prefetch(later_[i] + line, 0, 2);
        add_at<f64s>(count, k + i * LANES);
      }
    }
    for (; k + LANES <= d_; k += LANES) add_at<f64s>(count, k);
    for (; k < d_; ++k) add_at<double>(count, k);
    fresh_ = false;
  }

  template <class V>
  __attribute__((always_inline)) void add_at(int count, int64_t k) {
    V sum = fresh_ ? V{} : load<V>(sum_ + k), unit_sum = fresh_ ? V{} : load<V>(unit_sum_ + k);
    for (int j = 0; j < count; ++j) {
      const V x = load<V>(rows_[j] + k);
      sum += x;
      unit_sum += x * inverse_[j];
    }
    store(sum_ + k, sum);
    store(unit_sum_ + k, unit_sum);
  }

  // Zero rows, rows that are not finite, and rows whose squares leave the safe range.
  void take_unusual(const T* row) {
    const Extreme extreme = measure_extreme(row, d_);
    if (extreme.norm_of_scaled == 0.0) return;
    const double norm = extreme.norm_of_scaled / extreme.scale;
    directions += 1;
    square_norms += norm * norm;
    for (int64_t k = 0; k < d_; ++k) {
      sum_[k] = (fresh_ ? 0.0 : sum_[k]) + value(row[k]);
      unit_sum_[k] =
          (fresh_ ? 0.0 : unit_sum_[k]) + value(row[k]) * extreme.scale / extreme.norm_of_scaled;
    }
    fresh_ = false;
  }

  int64_t d_;
  double* sum_;
  double* unit_sum_;
  bool fresh_;
  const T* rows_[MAX_GROUP];
  const T* later_[MAX_GROUP];
  double inverse_[MAX_GROUP];
  int count_ = 0;
};

/// Adds ‖ŝ‖², ŝ·m and ‖m‖², m = scale·sum, to the group's products, and ŝ to the totals.
void add_products(const double* sum, const double* unit_sum, int64_t d, int64_t slot,
                  const GroupMomentsView& out) {
  double* products = out.products + 3 * slot;
  f64s acc[3] = {};
  int64_t k = 0;
  for (; k + LANES <= d; k += LANES) {
    const f64s unit = load<f64s>(unit_sum + k), mean = load<f64s>(sum + k) * out.scale;
    acc[0] += unit * unit;
    acc[1] += unit * mean;
    acc[2] += mean * mean;
    store(out.totals + k, load<f64s>(out.totals + k) + unit);
  }
  for (int i = 0; i < 3; ++i) products[i] += sum_lanes(acc[i]);
  for (; k < d; ++k) {
    const double unit = unit_sum[k], mean = sum[k] * out.scale;
    products[0] += unit * unit;
    products[1] += unit * mean;
    products[2] += mean * mean;
    out.totals[k] += unit;
  }
}

template <class T>
void walk(const RowsView& rows, const RunsView& runs, int64_t first, int64_t last,
          const GroupMomentsView& out, double* scratch) {
  const T* data = static_cast<const T*>(rows.data);
  for (int64_t s = first; s < last; ++s) {
    const int64_t slot = runs.slot[s];
    // A sum that nobody asked for is still added up, where it disturbs nothing.
    double* sum = out.sums != nullptr ? out.sums + slot * rows.d : scratch;
    double* unit_sum = out.unit_sums != nullptr ? out.unit_sums + slot * rows.d : scratch + rows.d;
    Run<T> run(rows.d, sum, unit_sum, out.products != nullptr);
    for (int64_t i = runs.begin[s]; i < runs.end[s]; ++i) {
      const int64_t later = i + MAX_GROUP < runs.rows ? i + MAX_GROUP : runs.rows - 1;
      run.take(data + runs.order[i] * rows.row_stride, data + runs.order[later] * rows.row_stride);
    }
    run.flush();
    out.counts[slot] += run.directions;
    out.square_norms[slot] += run.square_norms;
    if (out.products != nullptr && run.directions > 0) {
      add_products(sum, unit_sum, rows.d, slot, out);
    }
  }
}

}  // namespace

void group_moments_part(const RowsView& rows, const RunsView& runs, int64_t first, int64_t last,
                        const GroupMomentsView& out, double* scratch) {
  switch (rows.dtype) {
    case DType::f64:
      return walk<double>(rows, runs, first, last, out, scratch);
    case DType::f32:
      return walk<float>(rows, runs, first, last, out, scratch);
    case DType::f16:
      return walk<f16>(rows, runs, first, last, out, scratch);
    case DType::bf16:
      return walk<bf16>(rows, runs, first, last, out, scratch);
  }
}

}  // namespace aniso::cpu::ANISO_ISA
