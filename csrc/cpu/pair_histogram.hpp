// Histogram, minimum and maximum of the cosines of all pairs of rows; never the N × N matrix.
#pragma once

#include "common/rows_view.hpp"
#include "cpu/isa.hpp"

namespace aniso::cpu {

/// Bins of equal width over [low, high]; the last one holds high itself.
struct BinsView {
  double low;
  double high;
  int64_t bins;
  int64_t* counts;   ///< [bins + 2]: below low, the bins, above high
  double* extremes;  ///< [2]: least and largest cosine; start at +inf and -inf
};

/// The largest width of rows: exact sums of products of digits stay within 32 bits.
constexpr int64_t PAIR_HISTOGRAM_MAX_DIM = 32768;

/// Adds the pairs i < j of rows of `a` (b null), or all pairs of a row of `a` and a row of `b`.
/// Rows of float32, float16 or bfloat16, finite, with a direction; bfloat16 rows with norms from
/// 1e-15 to 1e15. Needs has_amx() and d <= PAIR_HISTOGRAM_MAX_DIM.
void pair_histogram(const RowsView& a, const RowsView* b, const BinsView& out, int threads);

/// The same in float32 vectors: rows of any dtype and width, finite, with a direction whose square
/// stays in float64's range.
void pair_histogram_vector(const RowsView& a, const RowsView* b, const BinsView& out, int threads,
                           Isa isa);

}  // namespace aniso::cpu
