#include "cpu/pair_histogram.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "common/aligned.hpp"
#include "common/arena.hpp"
#include "common/parallel.hpp"
#include "cpu/pair_histogram_kernel.hpp"

namespace aniso::cpu {
namespace {

// What a chunk and a block of partners may take, and the least a packed row takes.
constexpr int64_t CHUNK_BYTES = int64_t{32} << 20, BLOCK_BYTES = int64_t{768} << 10;
constexpr int64_t LEAST_ROW_BYTES = 64;
constexpr int LEAST_COPIES = 2;
// All pairs of a chunk and a block may lie in one bin: its counters have 32 bits.
static_assert(CHUNK_BYTES / LEAST_ROW_BYTES * (BLOCK_BYTES / LEAST_ROW_BYTES) / LEAST_COPIES <
              int64_t{1} << 32);

int64_t rows_in(int64_t bytes, int64_t row_bytes, int64_t needed) {
  const auto whole = [](int64_t rows) { return (rows + PAIR_GROUP - 1) / PAIR_GROUP * PAIR_GROUP; };
  return std::min(whole(needed), std::max(PAIR_GROUP, bytes / row_bytes / PAIR_GROUP * PAIR_GROUP));
}

PairPlan pair_plan(const RowsView& a, const RowsView* b, int64_t bins, bool amx) {
  PairPlan plan{};
  plan.row_bytes = (a.d + 15) / 16 * 64;
  if (amx) {
    plan.row_bytes = a.dtype == DType::bf16 ? (a.d + 31) / 32 * 64 : (a.d + 63) / 64 * 64 * 3;
  }
  plan.chunk_rows = rows_in(CHUNK_BYTES, plan.row_bytes, a.n);
  plan.block_rows = rows_in(BLOCK_BYTES, plan.row_bytes, b == nullptr ? a.n : b->n);
  plan.stride = bins + 3;
  // More copies evict the rows from the caches (of 65,536 bins, 4 cost 10 to 20 % more than 2),
  // fewer make pairs in one bin wait.
  plan.copies = bins > 16384 ? LEAST_COPIES : 2 * LEAST_COPIES;
  return plan;
}

/// Runs member(scratch, team, number) on every thread and adds up what they counted.
template <class Member>
void run_members(const RowsView& a, const RowsView* b, const BinsView& out, int threads, bool amx,
                 const Member& run_member) {
  const PairPlan plan = pair_plan(a, b, out.bins, amx);
  const int count = std::max(threads, 1);
  const std::size_t chunk_bytes = plan.chunk_rows * plan.row_bytes;
  const std::size_t block_bytes = plan.block_rows * plan.row_bytes;
  Arena arena(Arena::rounded(chunk_bytes) + count * Arena::rounded(block_bytes));
  int8_t* const chunk = arena.array<int8_t>(chunk_bytes);
  AlignedArray<float> chunk_scale(plan.chunk_rows), block_scales(count * plan.block_rows);
  const int64_t block_panels = plan.block_rows / PAIR_PANEL;
  AlignedArray<float> chunk_rest(plan.chunk_rows / PAIR_PANEL), block_rests(count * block_panels);
  AlignedArray<uint32_t> counters(count * plan.copies * plan.stride);
  AlignedArray<int64_t> counts(count * (out.bins + 2));
  std::vector<PairMember> members;
  for (int member = 0; member < count; ++member) {
    members.push_back(
        {arena.array<int8_t>(block_bytes), block_scales.data() + member * plan.block_rows,
         block_rests.data() + member * block_panels,
         counters.data() + member * plan.copies * plan.stride,
         counts.data() + member * (out.bins + 2), std::numeric_limits<float>::infinity(),
         -std::numeric_limits<float>::infinity()});
  }
  const PairScratch scratch{plan, chunk, chunk_scale.data(), chunk_rest.data(), members.data()};
  Team team{count};
  parallel_parts(count, count,
                 [&](int member, int64_t, int64_t) { run_member(scratch, team, member); });
  for (const PairMember& member : members) {
    for (int64_t k = 0; k < out.bins + 2; ++k) out.counts[k] += member.counts[k];
    out.extremes[0] = std::min(out.extremes[0], static_cast<double>(member.least));
    out.extremes[1] = std::max(out.extremes[1], static_cast<double>(member.largest));
  }
}

}  // namespace

void pair_histogram([[maybe_unused]] const RowsView& a, [[maybe_unused]] const RowsView* b,
                    [[maybe_unused]] const BinsView& out, [[maybe_unused]] int threads) {
#if defined(ANISO_AMX)
  run_members(a, b, out, threads, true, [&](const PairScratch& scratch, Team& team, int member) {
    amx::pair_histogram_member(a, b, out.low, out.high, out.bins, scratch, team, member);
  });
#endif
}

void pair_histogram_vector(const RowsView& a, const RowsView* b, const BinsView& out, int threads,
                           Isa isa) {
  const PairBins bins{out.low, out.high, out.bins / (out.high - out.low), out.bins};
  auto* const run = ANISO_FOR_ISA(isa, pair_histogram_vector_member);
  run_members(a, b, out, threads, false, [&](const PairScratch& scratch, Team& team, int member) {
    run(a, b, bins, scratch, team, member);
  });
}

}  // namespace aniso::cpu
