// The serial kernel of row_moments, compiled once per instruction set (see simd.hpp): builtins
// instead of <cmath> and <algorithm>, whose inline functions would be shared between them.
//
// Rows are taken a group at a time, from four streams: the processor fetches only so far ahead of
// each, and a thread reads one at 9 GB/s, four at 13. First pass over the group: the norms. Second
// pass: the sums over its rows, from the cache. Both are by one of two accumulators, in whole
// chunks of columns; the columns left over are taken one number at a time.
#include "cpu/row_moments.hpp"
#include "cpu/row_moments_half.hpp"
#include "cpu/row_moments_wide.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

/// Rows that are taken together.
template <class T, class Sums>
class Group {
 public:
  Group(Sums& sums, const RowMomentsView& out, int64_t d, int size)
      : sums_(sums), out_(out), d_(d), chunked_(d / Sums::CHUNK * Sums::CHUNK), size_(size) {}

  void take(const T* row) {
    rows_[count_++] = row;
    if (count_ == size_) flush();
  }

  void skip() { out_.counts[3] += 1; }

  void flush() {
    double squares[Sums::MAX_GROUP];
    int j = 0;
    for (; j + STREAMS <= count_; j += STREAMS)
      sums_.template squares<STREAMS>(rows_ + j, squares + j);
    for (; j < count_; ++j) sums_.template squares<1>(rows_ + j, squares + j);
    int kept = 0;
    for (j = 0; j < count_; ++j) {
      const T* row = rows_[j];
      for (int64_t k = chunked_; k < d_; ++k) squares[j] += value(row[k]) * value(row[k]);
      if (squares[j] >= Sums::MIN_SQUARES && squares[j] <= Sums::MAX_SQUARES) {
        const double norm = __builtin_sqrt(squares[j]);
        const double inverse = 1.0 / norm;
        count_row(norm);
        for (int64_t k = chunked_; k < d_; ++k)
          sums_.add_one(k, value(row[k]), value(row[k]) * inverse);
        rows_[kept] = row;
        inverses_[kept] = inverse;
        ++kept;
      } else {
        take_unusual(row);
      }
    }
    if (kept > 0) sums_.add(rows_, inverses_, kept);
    count_ = 0;
  }

 private:
  void count_row(double norm) {
    out_.counts[0] += 1;
    out_.counts[1] += norm == 0.0;
    out_.norm_sums[0] += norm;
    out_.norm_sums[1] += norm * norm;
    out_.norm_sums[2] += (norm * norm) * (norm * norm);
    if (norm < out_.norm_range[0]) out_.norm_range[0] = norm;
    if (norm > out_.norm_range[1]) out_.norm_range[1] = norm;
  }

  // Zero rows, rows that are not finite, and rows whose squares leave the safe range.
  void take_unusual(const T* row) {
    const Extreme extreme = measure_extreme(row, d_);
    if (extreme.scale == 0.0) {
      out_.counts[2] += 1;
      return;
    }
    count_row(extreme.norm_of_scaled / extreme.scale);
    if (extreme.norm_of_scaled == 0.0) return;
    for (int64_t k = 0; k < d_; ++k) {
      const double x = value(row[k]);
      sums_.add_one(k, x, x * extreme.scale / extreme.norm_of_scaled);
    }
  }

  Sums& sums_;
  RowMomentsView out_;
  int64_t d_;
  int64_t chunked_;  // columns in whole chunks
  int size_;
  const T* rows_[Sums::MAX_GROUP];
  double inverses_[Sums::MAX_GROUP];  // 1/‖x‖
  int count_ = 0;
};

template <class T, class Sums>
void run(const RowsView& rows, const MaskView& mask, int64_t begin, int64_t end,
         const RowMomentsView& out, void* scratch) {
  const T* data = static_cast<const T*>(rows.data);
  const int size = Sums::group(rows.d);
  const int run_rows = size / STREAMS;                 // side by side in memory
  const int rows_ahead = run_rows > 1 ? run_rows : 2;  // of the ones asked for, in their stream
  Sums sums(out, rows.d, rows_ahead * rows.row_stride, scratch);
  Group<T, Sums> group(sums, out, rows.d, size);
  const auto take = [&](int64_t i) {
    if (mask.data != nullptr && mask.data[i * mask.stride] == 0) {
      group.skip();
    } else {
      group.take(data + i * rows.row_stride);
    }
  };
  const int64_t steps = (end - begin) / size, stream = steps * run_rows;
  for (int64_t first = begin; first < begin + stream; first += run_rows) {
    for (int s = 0; s < STREAMS; ++s) {
      for (int j = 0; j < run_rows; ++j) take(first + s * stream + j);
    }
  }
  for (int64_t i = begin + size * steps; i < end; ++i) take(i);
  group.flush();
  sums.finish();
}

}  // namespace

void row_moments_part(const RowsView& rows, const MaskView& mask, int64_t begin, int64_t end,
                      const RowMomentsView& out, void* scratch) {
  switch (rows.dtype) {
    case DType::f64:
      return run<double, WideSums<double>>(rows, mask, begin, end, out, scratch);
    case DType::f32:
      return run<float, WideSums<float>>(rows, mask, begin, end, out, scratch);
    case DType::f16:
      return run<f16, HalfSums<f16>>(rows, mask, begin, end, out, scratch);
    case DType::bf16:
      return run<bf16, HalfSums<bf16>>(rows, mask, begin, end, out, scratch);
  }
}

}  // namespace aniso::cpu::ANISO_ISA
