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

/// Panels that a panel is multiplied with at a time: as many as stay in the second-level cache.
constexpr int64_t GRAM_BAND = 48;

/// How many digits a number is cut into, and how many rows are taken at once: as many as keep the
/// digits of two panels in the first-level cache (measured on 768 columns).
struct GramPlan {
  int digits;
  int64_t rows;
};
constexpr GramPlan GRAM_SINGLE{5, 192};
constexpr GramPlan GRAM_HALF{3, 384};
/// Rows taken at once where bfloat16 rows are multiplied as they are.
constexpr int64_t GRAM_BF16_ROWS = 512;
/// Steps of 32 of them in the first-level cache, and panels in the second.
constexpr int64_t GRAM_BF16_STEPS = 8;
constexpr int64_t GRAM_BF16_BAND = 16;

/// A row of bfloat16 numbers: zeros where it has no direction, and is kept for all that.
struct GramRow {
  const void* row;
  double weight;  // 1/‖x‖, or 0
  float scaled;   // weight in units of the block
  bool kept;
};

/// Scratch for products of bfloat16 rows as they are (see gram_bf16.hpp).
struct GramBf16 {
  GramRow* rows;         // [GRAM_BF16_ROWS]
  int16_t* extremes;     // [members][2][padded]: least and largest values of the columns
  float* exponents;      // [members][2]: least and largest exponent of 1/‖x‖
  double* pilot;         // [padded]: q
  double* counts;        // [4]: rows with a direction, kept rows without, Σw, Σw²
  double* sums[3];       // [padded]: Σu, Σwu, Σw²u
  double* block_counts;  // of the block alone
  double* block[3];
  double* squares;  // [panels][2]: Σu², Σw²u² of the block
  double* ends[3];  // [padded]: room for the corrections
};

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
  GramBf16 bf16;
};

/// Where the sums of two panels lie, rows GRAM_GROUP apart.
static inline double* gram_place(double* sums, int64_t panel, int64_t other) {
  const int64_t group = panel / 2, square = group * (group + 1) / 2 + other / 2;
  return sums + (square * GRAM_GROUP + panel % 2 * GRAM_PANEL) * GRAM_GROUP +
         other % 2 * GRAM_PANEL;
}

namespace amx {
/// One member's share of a whole call; all members of the team call it at the same time.
void gram_member(const RowsView& rows, const MaskView& mask, const GramScratch& scratch, Team& team,
                 int member);
}  // namespace amx

}  // namespace aniso::cpu
