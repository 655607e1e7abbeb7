// Sums over the rows of every group (formulas.md, state S4), one run of rows after the other.
#pragma once

#include "common/group_moments_view.hpp"
#include "common/rows_view.hpp"
#include "cpu/isa.hpp"

namespace aniso::cpu {

/// Adds the moments of all runs to `out`, on up to `threads` threads. A run is summed by one
/// thread, so that nothing but the split of the totals depends on their number.
void group_moments(const RowsView& rows, const RunsView& runs, const GroupMomentsView& out,
                   int threads, Isa isa);

/// Runs [first, last), serially; `scratch` is 2 d numbers, totals one row.
ANISO_PER_ISA(void group_moments_part(const RowsView&, const RunsView&, int64_t first, int64_t last,
                                      const GroupMomentsView&, double* scratch);)

}  // namespace aniso::cpu
