// The serial kernel of row_moments, compiled once per instruction set (see simd.hpp): builtins
// instead of <cmath> and <algorithm>, whose inline functions would be shared between them.
//
// Rows are taken a group at a time. First pass over the group: the norms (the only read from
// memory). Second pass: the sums over its rows, from the cache, by one of two accumulators.
#include "cpu/row_moments.hpp"
#include "cpu/row_moments_half.hpp"
#include "cpu/row_moments_wide.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

/// The rows of one group that have a direction, ready for the second pass.
template <class T, class Sums>
class Group {
 public:
  Group(Sums& sums, const RowMomentsView& out, int64_t d) : sums_(sums), out_(out), d_(d) {}

  void take(const T* row, ReadAhead& ahead) {
    const double squares = Sums::squares(row, d_, ahead);
    if (squares >= Sums::MIN_SQUARES && squares <= Sums::MAX_SQUARES) {
      const double norm = __builtin_sqrt(squares);
      count_row(norm);
      rows_[count_] = row;
      directions_[count_] = {1.0 / norm, 1.0 / squares};
      ++count_;
    } else {
      take_unusual(row);
    }
  }

  void skip() { out_.counts[3] += 1; }

  void flush(ReadAhead& ahead) {
    if (count_ > 0) sums_.add(rows_, directions_, count_, ahead);
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
      sums_.add_unusual(k, x, x * extreme.scale / extreme.norm_of_scaled);
    }
  }

  Sums& sums_;
  RowMomentsView out_;
  int64_t d_;
  const T* rows_[Sums::MAX_GROUP];
  Direction directions_[Sums::MAX_GROUP];
  int count_ = 0;
};

template <class T, class Sums>
void run(const RowsView& rows, const MaskView& mask, int64_t begin, int64_t end,
         const RowMomentsView& out, void* scratch) {
  const T* data = static_cast<const T*>(rows.data);
  const int size = Sums::group(rows.d);
  Sums sums(out, rows.d, scratch);
  Group<T, Sums> group(sums, out, rows.d);
  ReadAhead ahead(size * rows.row_stride * static_cast<int64_t>(sizeof(T)));
  for (int64_t first = begin; first < end; first += size) {
    const int64_t last = first + size < end ? first + size : end;
    ahead.start(data + first * rows.row_stride);
    for (int64_t i = first; i < last; ++i) {
      if (mask.data != nullptr && mask.data[i * mask.stride] == 0) {
        group.skip();
      } else {
        group.take(data + i * rows.row_stride, ahead);
      }
    }
    group.flush(ahead);
  }
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
