// What pair_histogram.cpp allocates and pair_histogram_kernel.cpp works on.
#pragma once

#include "common/rows_view.hpp"
#include "common/team.hpp"
#include "cpu/isa.hpp"

namespace aniso::cpu {

/// Rows of a panel: one side of a matrix tile; rows come in pairs of panels.
constexpr int64_t PAIR_PANEL = 16;
constexpr int64_t PAIR_GROUP = 2 * PAIR_PANEL;

/// Sizes of one call. A chunk of rows of `a` lies packed for all threads; each thread packs a block
/// of partner rows after another and multiplies it with the chunk.
struct PairPlan {
  int64_t row_bytes;   // of one packed row: bfloat16 as it is, or three digits of every number;
                       // without AMX float32
  int64_t chunk_rows;  // as many as fill 32 MiB
  int64_t block_rows;  // as many as fill 768 KiB of the second-level cache
  int64_t stride;  // of one copy of the counters: below, bins, above, and pairs that do not count
  int copies;      // of the counters, so that pairs in the same bin do not wait for each other
};

/// One thread's counters and partner block.
struct PairMember {
  int8_t* block;       // [block_rows * row_bytes]
  float* block_scale;  // [block_rows]
  float* block_rest;   // [block_rows / 16] size of the lower digits, the largest of a panel
  uint32_t* counters;  // [copies][stride], below 2³² by settling between items
  int64_t* counts;     // [bins + 2]
  float least;
  float largest;
};

struct PairScratch {
  PairPlan plan;
  int8_t* chunk;       // [chunk_rows * row_bytes]
  float* chunk_scale;  // [chunk_rows]
  float* chunk_rest;   // [chunk_rows / 16]
  PairMember* members;
};

/// The bins of pair_histogram_vector_member: cosines in [low, high], per_unit bins to a unit.
struct PairBins {
  double low;
  double high;
  double per_unit;
  int64_t bins;
};

namespace amx {
/// One member's share of a whole call; all members of the team call it at the same time.
void pair_histogram_member(const RowsView& a, const RowsView* b, double low, double high,
                           int64_t bins, const PairScratch& scratch, Team& team, int member);
}  // namespace amx

/// The same in float32 vectors, of rows of any dtype.
ANISO_PER_ISA(void pair_histogram_vector_member(const RowsView& a, const RowsView* b,
                                                const PairBins& bins, const PairScratch& scratch,
                                                Team& team, int member);)

}  // namespace aniso::cpu
