// What gram.cpp allocates and gram_kernel.cpp works on.
#pragma once

#include "common/rows_view.hpp"
#include "common/team.hpp"
#include "cpu/row_scale.hpp"

namespace aniso::cpu {

/// Columns of a panel: one side of a matrix tile.
constexpr int64_t GRAM_PANEL = 16;
/// Columns of a group of two panels: results are computed in squares of 2 × 2 tiles.
constexpr int64_t GRAM_GROUP = 2 * GRAM_PANEL;
/// Rows of a step: the depth of a tile of 8-bit digits.
constexpr int64_t GRAM_STEP = 64;

/// Groups that one group is multiplied with at a time.
constexpr int64_t GRAM_BAND = 8;

/// How many digits a number is cut into, and how many rows are taken at once: as many as keep the
/// digits of a few panels in the second-level cache (measured on 768 columns).
struct GramPlan {
  int digits;
  int64_t rows;
};
constexpr GramPlan GRAM_SINGLE{5, 192};
constexpr GramPlan GRAM_HALF{3, 384};

/// Scratch of one call; d is padded to whole groups.
struct GramScratch {
  int64_t padded;        // columns
  int8_t* digits[2];     // of the left and of the right factor: [panel][step][digit][1 KiB tile]
  RowScale* scales;      // [plan.rows]
  float* largest;        // [members][2][padded]: max |x_k| and max |x̂_k| over a member's rows
  double* factors;       // [padded]: weight of the first digit
  float* pilots[2];      // raw, unit: [padded] what is subtracted from every row
  double* totals[2];     // raw, unit: [padded] sums of the columns of what is multiplied
  double* noise[2];      // raw, unit: [panels] rounding to the last digit, squared and summed
  double* sums[2];       // raw, unit: [group pair][32][32], lower triangle; null where not asked
  const void* zero_row;  // [padded] elements
};

namespace amx {
/// One member's share of a whole call; all members of the team call it at the same time.
void gram_member(const RowsView& rows, const MaskView& mask, const GramScratch& scratch, Team& team,
                 int member);
}  // namespace amx

}  // namespace aniso::cpu
