// What gram.cpp allocates and gram_vector_kernel.cpp works on.
#pragma once

#include "common/rows_view.hpp"
#include "common/team.hpp"
#include "cpu/isa.hpp"

namespace aniso::cpu {

/// Rows taken at once: the depth of products of columns that stay in the first-level cache.
constexpr int64_t GRAM_VECTOR_ROWS = 256;
/// Columns that one thread multiplies with those before them at a time.
constexpr int64_t GRAM_VECTOR_BAND = 24;

/// Scratch of one call; columns are padded to whole bands.
struct GramVectorScratch {
  int64_t padded;        // columns
  double* columns;       // [padded][GRAM_VECTOR_ROWS]: the block as multiplied
  double* weights;       // [2][GRAM_VECTOR_ROWS]: 1 or 1/‖x‖, 0 for rows that are left out
  double* scales;        // [GRAM_VECTOR_ROWS]: a power of two that keeps squares in range
  double* sums[2];       // raw, unit: [padded][padded], lower triangle; null where not asked
  double* outs[2];       // raw, unit: [d, d]
  double* totals[2];     // raw, unit: [padded]
  const double* pilots;  // [2][d]
};

/// One member's share of a whole call; all members of the team call it at the same time.
ANISO_PER_ISA(void gram_vector_member(const RowsView& rows, const MaskView& mask,
                                      const GramVectorScratch& scratch, Team& team, int member);)

}  // namespace aniso::cpu
