// The kernel of gram in float64 vectors, for rows of float64 and processors without AMX. Phases
// over a block of rows, with a barrier between: weights of the rows, columns of the block in
// float64, products of every pair of columns.
#include "cpu/gram_vector_kernel.hpp"

#include "cpu/dense.hpp"
#include "cpu/symmetric.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

template <class T>
class Block {
 public:
  Block(const RowsView& rows, const MaskView& mask, const GramVectorScratch& scratch, Team& team,
        int member)
      : rows_(rows), mask_(mask), scratch_(scratch), team_(team), member_(member) {}

  void run() {
    clear_sums();
    for (int64_t first = 0; first < rows_.n; first += GRAM_VECTOR_ROWS) {
      const int64_t left = rows_.n - first;
      const int64_t count = left < GRAM_VECTOR_ROWS ? left : GRAM_VECTOR_ROWS;
      depth_ = padded(count);
      const int64_t begin = depth_ * member_ / team_.members;
      const int64_t end = depth_ * (member_ + 1) / team_.members;
      for (int64_t r = begin; r < end; ++r) weigh(first, r, r < count);
      team_wait(team_);
      for (int which = 0; which < 2; ++which) {
        if (scratch_.sums[which] == nullptr) continue;
        const int64_t bands = scratch_.padded / GRAM_VECTOR_BAND;
        for (int64_t band; (band = team_take(team_)) < bands;) fill(first, which, band);
        team_wait(team_);
        for (int64_t band; (band = team_take(team_)) < bands;) multiply_band(which, band);
        team_wait(team_);
      }
    }
    add_results();
  }

 private:
  const T* row(int64_t i) const { return static_cast<const T*>(rows_.data) + i * rows_.row_stride; }

  /// The weights of row r of the block in x and in x̂.
  void weigh(int64_t first, int64_t r, bool present) const {
    double *raw = scratch_.weights + r, *unit = raw + GRAM_VECTOR_ROWS;
    *raw = *unit = scratch_.scales[r] = 0.0;
    const int64_t i = first + r;
    if (!present || (mask_.data != nullptr && mask_.data[i * mask_.stride] == 0)) return;
    const T* x = row(i);
    double largest = 0.0, carried = 0.0;
    for (int64_t k = 0; k < rows_.d; ++k) {
      const double size = __builtin_fabs(value_of(x[k]));
      largest = size > largest ? size : largest;
      carried += size * 0.0;  // not 0 after a NaN or an infinity
    }
    if (carried != 0.0) return;
    *raw = 1.0;
    if (largest == 0.0) return;
    const int exponent = __builtin_ilogb(largest);
    const int half = exponent / 2;
    const double up = __builtin_scalbn(1.0, -half), more = __builtin_scalbn(1.0, half - exponent);
    double squares = 0.0;
    for (int64_t k = 0; k < rows_.d; ++k) {
      const double scaled = value_of(x[k]) * up * more;
      squares += scaled * scaled;
    }
    // x̂ = (x · scale) · unit: both factors stay in range.
    scratch_.scales[r] = up;
    *unit = more / __builtin_sqrt(squares);
  }

  static double value_of(const T& x) { return load<double>(&x); }

  /// A band of columns of the block: (x - pilot) or (x̂ - pilot), and their sums.
  void fill(int64_t first, int which, int64_t band) const {
    const double* weights = scratch_.weights + which * GRAM_VECTOR_ROWS;
    double sums[GRAM_VECTOR_BAND] = {};
    const int64_t begin = band * GRAM_VECTOR_BAND;
    for (int64_t r = 0; r < depth_; ++r) {
      const bool kept = weights[r] != 0.0;
      const double scale = which == 0 ? 1.0 : scratch_.scales[r];
      for (int64_t c = 0; c < GRAM_VECTOR_BAND; ++c) {
        const int64_t k = begin + c;
        double entry = 0.0;
        if (kept && k < rows_.d) {
          entry = value_of(row(first + r)[k]) * scale * weights[r] -
                  scratch_.pilots[which * rows_.d + k];
        }
        scratch_.columns[k * GRAM_VECTOR_ROWS + r] = entry;
        sums[c] += entry;
      }
    }
    for (int64_t c = 0; c < GRAM_VECTOR_BAND; ++c) scratch_.totals[which][begin + c] += sums[c];
  }

  void multiply_band(int which, int64_t band) const {
    const Matrix columns{scratch_.columns, scratch_.padded, depth_, GRAM_VECTOR_ROWS};
    const Matrix out{scratch_.sums[which], scratch_.padded, scratch_.padded, scratch_.padded};
    const int64_t begin = band * GRAM_VECTOR_BAND, end = begin + GRAM_VECTOR_BAND;
    for (int64_t j = 0; j < end; j += DOT_COLUMNS) {
      for (int64_t i = begin; i < end; i += DOT_ROWS) {
        if (j < i + DOT_ROWS) dot_tile(columns, columns, i, j, 0, depth_, out);
      }
    }
  }

  /// All members together.
  void clear_sums() const {
    const int64_t bands = scratch_.padded / GRAM_VECTOR_BAND;
    for (int64_t band; (band = team_take(team_)) < bands;) {
      for (double* sums : scratch_.sums) {
        if (sums == nullptr) continue;
        const int64_t begin = band * GRAM_VECTOR_BAND, end = begin + GRAM_VECTOR_BAND;
        for (int64_t i = begin; i < end; ++i) {
          __builtin_memset(sums + i * scratch_.padded, 0, end * sizeof(double));
        }
      }
    }
    team_wait(team_);
  }

  /// Adds the lower triangles to both halves of the results.
  void add_results() const {
    const int64_t d = rows_.d, groups = (d + TURNED_SIDE - 1) / TURNED_SIDE;
    for (int64_t item; (item = team_take(team_)) < 2 * groups;) {
      double *sums = scratch_.sums[item % 2], *out = scratch_.outs[item % 2];
      if (sums == nullptr) continue;
      const int64_t first = (groups - 1 - item / 2) * TURNED_SIDE;
      const int64_t rows = d - first < TURNED_SIDE ? d - first : TURNED_SIDE;
      for (int64_t other = 0; other <= first; other += TURNED_SIDE) {
        const int64_t columns = other < first ? TURNED_SIDE : rows;
        add_square(sums + first * scratch_.padded + other, scratch_.padded, rows, columns,
                   other == first, d, out + first * d + other, out + other * d + first);
      }
    }
  }

  const RowsView& rows_;
  const MaskView& mask_;
  const GramVectorScratch& scratch_;
  Team& team_;
  int member_;
  int64_t depth_ = 0;  // rows of the block, whole vectors
};

}  // namespace

void gram_vector_member(const RowsView& rows, const MaskView& mask,
                        const GramVectorScratch& scratch, Team& team, int member) {
  switch (rows.dtype) {
    case DType::f64:
      return Block<double>(rows, mask, scratch, team, member).run();
    case DType::f32:
      return Block<float>(rows, mask, scratch, team, member).run();
    case DType::f16:
      return Block<f16>(rows, mask, scratch, team, member).run();
    case DType::bf16:
      return Block<bf16>(rows, mask, scratch, team, member).run();
  }
}

}  // namespace aniso::cpu::ANISO_ISA
