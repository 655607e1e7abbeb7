// The kernel of pair_histogram in float32 vectors, for processors without AMX and rows too wide for
// it: directions are packed in float32, multiplied tile by tile and counted as they come.
#include "cpu/dense.hpp"
#include "cpu/pair_histogram_kernel.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

// Products of a tile stay in registers: of 16 where there are no more.
#if defined(__AVX512F__)
constexpr int SIDE_A = 4;
#else
constexpr int SIDE_A = 2;
#endif
constexpr int SIDE_B = 4;
constexpr int64_t FLOATS = 2 * LANES;

template <class T>
class VectorPairs {
 public:
  VectorPairs(const RowsView& a, const RowsView* b, const PairBins& bins,
              const PairScratch& scratch, Team& team, int member)
      : a_(a),
        b_(b == nullptr ? a : *b),
        self_(b == nullptr),
        bins_(bins),
        scratch_(scratch),
        plan_(scratch.plan),
        member_(scratch.members[member]),
        team_(team),
        width_(scratch.plan.row_bytes / 4) {}

  void run() {
    for (int64_t first = 0; first < a_.n; first += plan_.chunk_rows) {
      const int64_t count = least(plan_.chunk_rows, a_.n - first);
      for (int64_t row; (row = team_take(team_)) < count;) pack(a_, first + row, chunk(row));
      team_wait(team_);
      // A row's partners are the rows before it, or all of b.
      const int64_t partners = self_ ? first + count : b_.n;
      for (int64_t block; (block = team_take(team_) * plan_.block_rows) < partners;) {
        const int64_t end = least(plan_.block_rows, partners - block);
        for (int64_t j = 0; j < end; ++j) pack(b_, block + j, partner(j));
        count_block(first, count, block, end);
        settle();
      }
      team_wait(team_);
    }
  }

 private:
  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
  float* chunk(int64_t i) const { return reinterpret_cast<float*>(scratch_.chunk) + i * width_; }
  float* partner(int64_t j) const { return reinterpret_cast<float*>(member_.block) + j * width_; }

  /// x̂ in float32, by way of float64; zeros up to the packed width.
  void pack(const RowsView& x, int64_t i, float* out) const {
    const T* row = static_cast<const T*>(x.data) + i * x.row_stride;
    double squares = 0.0;
    for (int64_t k = 0; k < x.d; ++k) squares += load<double>(row + k) * load<double>(row + k);
    const double inverse = 1.0 / __builtin_sqrt(squares);
    for (int64_t k = 0; k < x.d; ++k) out[k] = static_cast<float>(load<double>(row + k) * inverse);
    for (int64_t k = x.d; k < width_; ++k) out[k] = 0.0f;
  }

  void count_block(int64_t first, int64_t count, int64_t block, int64_t partners) {
    for (int64_t i = 0; i < count; i += SIDE_A) {
      const int64_t last = least(i + SIDE_A, count);
      const int64_t end = self_ ? least(partners, first + last - 1 - block) : partners;
      for (int64_t j = 0; j < end; j += SIDE_B) {
        float cosines[SIDE_A][SIDE_B];
        multiply(chunk(i), partner(j), cosines);
        for (int64_t r = 0; r < last - i; ++r) {
          const int64_t limit = self_ ? least(partners, first + i + r - block) : partners;
          for (int64_t c = 0; c < SIDE_B && j + c < limit; ++c) add(cosines[r][c]);
        }
      }
    }
  }

  void multiply(const float* a, const float* b, float (&out)[SIDE_A][SIDE_B]) const {
    f32s sums[SIDE_A][SIDE_B] = {};
    for (int64_t k = 0; k < width_; k += FLOATS) {
      f32s y[SIDE_B];
#pragma GCC unroll 4
      for (int c = 0; c < SIDE_B; ++c) y[c] = load_as<f32s>(b + c * width_ + k);
#pragma GCC unroll 4
      for (int r = 0; r < SIDE_A; ++r) {
        const f32s x = load_as<f32s>(a + r * width_ + k);
#pragma GCC unroll 4
        for (int c = 0; c < SIDE_B; ++c) sums[r][c] += x * y[c];
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < SIDE_A; ++r) {
      f64s wide[4];
      double totals[4] = {};
#pragma GCC unroll 4
      for (int c = 0; c < SIDE_B; ++c) wide[c] = low_as_f64(sums[r][c]) + high_as_f64(sums[r][c]);
      add_sums(wide, totals);
      for (int c = 0; c < SIDE_B; ++c) out[r][c] = static_cast<float>(totals[c]);
    }
  }

  void add(float cosine) {
    cosine = cosine > 1.0f ? 1.0f : cosine < -1.0f ? -1.0f : cosine;
    member_.least = cosine < member_.least ? cosine : member_.least;
    member_.largest = cosine > member_.largest ? cosine : member_.largest;
    int64_t bin = static_cast<int64_t>((cosine - bins_.low) * bins_.per_unit + 1.0);
    bin = bin < 1 ? 1 : bin > bins_.bins ? bins_.bins : bin;
    bin = cosine < bins_.low ? 0 : cosine > bins_.high ? bins_.bins + 1 : bin;
    // Pairs in one bin take turns between the copies, so that they do not wait for each other.
    turn_ = turn_ + 1 == plan_.copies ? 0 : turn_ + 1;
    member_.counters[turn_ * plan_.stride + bin] += 1;
  }

  /// Moves the counters on to 64 bits.
  void settle() {
    for (int copy = 0; copy < plan_.copies; ++copy) {
      uint32_t* counters = member_.counters + copy * plan_.stride;
      for (int64_t k = 0; k < bins_.bins + 2; ++k) member_.counts[k] += counters[k];
      for (int64_t k = 0; k < plan_.stride; ++k) counters[k] = 0;
    }
  }

  const RowsView a_, b_;
  bool self_;
  const PairBins bins_;
  const PairScratch& scratch_;
  const PairPlan& plan_;
  PairMember& member_;
  Team& team_;
  int64_t width_;
  int turn_ = 0;
};

}  // namespace

void pair_histogram_vector_member(const RowsView& a, const RowsView* b, const PairBins& bins,
                                  const PairScratch& scratch, Team& team, int member) {
  switch (a.dtype) {
    case DType::f64:
      return VectorPairs<double>(a, b, bins, scratch, team, member).run();
    case DType::f32:
      return VectorPairs<float>(a, b, bins, scratch, team, member).run();
    case DType::f16:
      return VectorPairs<f16>(a, b, bins, scratch, team, member).run();
    case DType::bf16:
      return VectorPairs<bf16>(a, b, bins, scratch, team, member).run();
  }
}

}  // namespace aniso::cpu::ANISO_ISA
