#include "cpu/row_moments.hpp"

#include <algorithm>
#include <limits>

#include "common/arena.hpp"
#include "common/parallel.hpp"

namespace aniso::cpu {
namespace {

// Below this many elements, starting a thread (~20 us) costs more than it saves.
constexpr int64_t kSmallPart = int64_t{1} << 17;
// Above this many elements and rows, making and merging accumulators costs nothing beside them.
constexpr int64_t kLargePart = int64_t{1} << 20;
constexpr int64_t kManyRows = 1024;
constexpr int64_t kMostParts = 256;

/// How many parts the rows are summed in: a power of two, so that threads get as many each. It
/// depends on the rows alone, and so do the sums, whatever the number of threads.
int parts_of(int64_t n, int64_t d) {
  const int64_t small = std::min<int64_t>(n * d / kSmallPart, 8);
  const int64_t large = std::min({n * d / kLargePart, n / kManyRows, kMostParts});
  int parts = 1;
  while (2 * parts <= std::max(small, large)) parts *= 2;
  return parts;
}

/// Accumulators of all parts.
class PartialMoments {
 public:
  PartialMoments(Arena& arena, int parts, int64_t d)
      : d_(d),
        doubles_(arena.zeros<double>(parts * size(d))),
        counts_(arena.zeros<int64_t>(parts * LINE)) {
    for (int part = 0; part < parts; ++part)
      of(part).norm_range[0] = std::numeric_limits<double>::infinity();
  }

  /// What they take of an arena.
  static std::size_t bytes(int parts, int64_t d) {
    return parts * (size(d) + LINE) * sizeof(double);
  }

  RowMomentsView of(int part) const {
    double* base = doubles_ + part * size(d_);
    return {base, base + 5 * d_, base + 5 * d_ + 3, base + 4 * d_, counts_ + LINE * part};
  }

  void add_to(const RowMomentsView& out, int index) const {
    const RowMomentsView part = of(index);
    for (int64_t k = 0; k < 4 * d_; ++k) out.sums[k] += part.sums[k];
    for (int64_t k = 0; k < d_; ++k) out.abs_max[k] = std::max(out.abs_max[k], part.abs_max[k]);
    for (int k = 0; k < 3; ++k) out.norm_sums[k] += part.norm_sums[k];
    out.norm_range[0] = std::min(out.norm_range[0], part.norm_range[0]);
    out.norm_range[1] = std::max(out.norm_range[1], part.norm_range[1]);
    for (int k = 0; k < 4; ++k) out.counts[k] += part.counts[k];
  }

 private:
  static constexpr int64_t LINE = 64 / sizeof(double);  // threads write to lines of their own

  static int64_t size(int64_t d) { return (5 * d + 5 + LINE - 1) / LINE * LINE; }

  int64_t d_;
  double* doubles_;
  int64_t* counts_;
};

}  // namespace

void row_moments(const RowsView& rows, const MaskView& mask, const RowMomentsView& out, int threads,
                 Isa isa) {
  const int parts = parts_of(rows.n, rows.d);
  auto* const run = ANISO_FOR_ISA(isa, row_moments_part);
  const int workers = std::min(threads, parts);
  const std::size_t scratch_bytes = Arena::rounded(ROW_MOMENTS_SCRATCH * rows.d);
  Arena arena(PartialMoments::bytes(parts, rows.d) + workers * scratch_bytes);
  const PartialMoments partial(arena, parts, rows.d);
  char* const scratch = arena.zeros<char>(workers * scratch_bytes);
  const auto begin = [&](int64_t part) {
    return rows.n / parts * part + std::min<int64_t>(part, rows.n % parts);
  };
  parallel_parts(parts, workers, [&](int worker, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      run(rows, mask, begin(i), begin(i + 1), partial.of(i), scratch + worker * scratch_bytes);
    }
  });
  for (int part = 0; part < parts; ++part) partial.add_to(out, part);
}

}  // namespace aniso::cpu
