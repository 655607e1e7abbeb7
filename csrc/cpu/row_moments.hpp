// Sums over rows (formulas.md, state S1) in a single read of x.
#pragma once

#include "common/row_moments_view.hpp"
#include "common/rows_view.hpp"
#include "cpu/isa.hpp"

namespace aniso::cpu {

/// Adds the moments of all kept rows to `out`, on up to `threads` threads; the same bits for any.
void row_moments(const RowsView& rows, const MaskView& mask, const RowMomentsView& out, int threads,
                 Isa isa);

/// Scratch of a part, in bytes per column, zeroed before and after. Half precision takes it all:
/// four float32 sums and the largest number.
constexpr int ROW_MOMENTS_SCRATCH = 18;

/// One serial pass over rows [begin, end) into fresh accumulators.
ANISO_PER_ISA(void row_moments_part(const RowsView&, const MaskView&, int64_t begin, int64_t end,
                                    const RowMomentsView&, void* scratch);)

}  // namespace aniso::cpu
