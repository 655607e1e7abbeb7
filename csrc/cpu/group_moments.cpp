#include "cpu/group_moments.hpp"

#include <algorithm>
#include <vector>

#include "common/aligned.hpp"
#include "common/parallel.hpp"

namespace aniso::cpu {
namespace {

// Below this many elements per thread, starting the thread (~20 us) costs more than it saves.
constexpr int64_t kElementsPerThread = int64_t{1} << 17;

/// First run of every part, and the end of the last: parts of about as many rows each.
std::vector<int64_t> divide_runs(const RunsView& runs, int parts) {
  std::vector<int64_t> bounds(parts + 1, runs.count);
  int64_t total = 0, rows = 0;
  for (int64_t s = 0; s < runs.count; ++s) total += runs.end[s] - runs.begin[s];
  for (int64_t s = 0, part = 0; s < runs.count; ++s) {
    while (part < parts && rows * parts >= total * part) bounds[part++] = s;
    rows += runs.end[s] - runs.begin[s];
  }
  return bounds;
}

}  // namespace

void group_moments(const RowsView& rows, const RunsView& runs, const GroupMomentsView& out,
                   int threads, Isa isa) {
  const int64_t useful = runs.rows * rows.d / kElementsPerThread;
  const int64_t most = out.totals != nullptr ? std::min<int64_t>(threads, out.writers) : threads;
  const int parts = static_cast<int>(std::max<int64_t>(1, std::min(most, useful)));
  auto* const run = ANISO_FOR_ISA(isa, group_moments_part);
  const std::vector<int64_t> bounds = divide_runs(runs, parts);
  parallel_parts(parts, parts, [&](int part, int64_t, int64_t) {
    AlignedArray<double> scratch(2 * rows.d);
    GroupMomentsView own = out;
    if (out.totals != nullptr) own.totals += part * rows.d;
    run(rows, runs, bounds[part], bounds[part + 1], own, scratch.data());
  });
}

}  // namespace aniso::cpu
