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

/// Results are computed by regions, so many groups against a band of so many panels, whose sums
/// stay in the second-level cache while all rows of a block go by: of products of digits, and of
/// bfloat16 numbers (two results each).
struct GramRegionSize {
  int64_t groups, panels;
};
constexpr GramRegionSize GRAM_DIGIT_REGION{24, 6};
constexpr GramRegionSize GRAM_BF16_REGION{12, 8};
constexpr int64_t GRAM_BF16_REGION_SUMS =
    GRAM_BF16_REGION.groups * GRAM_BF16_REGION.panels * 2 * GRAM_GROUP * GRAM_PANEL;

/// A block is as many parts as fit in so many bytes, at least one and no more than so many.
constexpr int64_t GRAM_BLOCK_BYTES = int64_t{8} << 20;
constexpr int64_t GRAM_BLOCK_PARTS = 64;

/// How many digits a number is cut into, and the rows of a part of a block: as many as keep the
/// digits of a panel (float32) or of two in the first-level cache (measured on 768 columns).
struct GramPlan {
  int digits;
  int64_t part;
  int bytes;  // per number of the left factor
};
constexpr GramPlan GRAM_SINGLE{5, 448, 5};
constexpr GramPlan GRAM_HALF{3, 384, 3};
/// bfloat16 rows multiplied as they are.
constexpr GramPlan GRAM_BF16{1, 256, 2};

/// Bytes of the right digits of a region, or of the right tiles of bfloat16 numbers, of one part.
constexpr int64_t GRAM_RIGHT_BYTES = int64_t{256} << 10;
static_assert(GRAM_RIGHT_BYTES >=
              GRAM_DIGIT_REGION.panels * GRAM_PANEL * (GRAM_SINGLE.digits * GRAM_SINGLE.part));
static_assert(GRAM_RIGHT_BYTES >=
              GRAM_DIGIT_REGION.panels * GRAM_PANEL * (GRAM_HALF.digits * GRAM_HALF.part));
static_assert(GRAM_RIGHT_BYTES >= GRAM_BF16_REGION.panels * GRAM_PANEL * 6 * GRAM_BF16.part);

/// Groups against a band of panels.
struct GramRegion {
  int64_t first_group, last_group, first_panel, last_panel;
};

/// The regions on or below the diagonal of a triangle of groups, the tallest first.
class GramRegions {
 public:
  GramRegions(int64_t groups, const GramRegionSize& size)
      : groups_(groups),
        size_(size),
        bands_((2 * groups + size.panels - 1) / size.panels),
        heights_((groups + size.groups - 1) / size.groups) {}

  /// Some of them are empty.
  int64_t count() const { return bands_ * heights_; }
  GramRegion at(int64_t item) const {
    const int64_t first_panel = item / heights_ * size_.panels, diagonal = first_panel / 2;
    const int64_t first = diagonal + item % heights_ * size_.groups;
    const int64_t last = first + size_.groups, last_panel = first_panel + size_.panels;
    return {first, last < groups_ ? last : groups_, first_panel,
            last_panel < 2 * groups_ ? last_panel : 2 * groups_};
  }

 private:
  int64_t groups_;
  GramRegionSize size_;
  int64_t bands_, heights_;
};

/// A row of bfloat16 numbers: zeros where it has no direction, and is kept for all that.
struct GramRow {
  const void* row;
  double weight;  // 1/‖x‖, or 0
  float scaled;   // weight in units of the block
  float square;   // its square, less what the rows of the block have in common
  bool kept;
};

/// Scratch for products of bfloat16 rows as they are (see gram_bf16.hpp).
struct GramBf16 {
  GramRow* rows;         // [rows]
  int16_t* extremes;     // [members][2][padded]: least and largest values of the columns
  float* exponents;      // [members][2]: least and largest exponent of 1/‖x‖
  double* weights;       // [members][2]: least and largest 1/‖x‖
  double* pilot;         // [padded]: q
  double* counts;        // [4]: rows with a direction, kept rows without, Σw, Σw²
  double* sums[3];       // [padded]: Σu, Σwu, Σw²u
  double* block_counts;  // of the block alone
  double* block[3];
  double* squares;  // [panels][2]: Σu², Σw²u² of the block
  double* ends[3];  // [2][padded]: what the sums are moved by (see Bf16Block::settle)
};

/// Scratch of one call; d is padded to whole groups.
struct GramScratch {
  int64_t padded;        // columns
  int64_t rows;          // of a block
  int8_t* digits;        // of the left factor: [part][panel][step][digit][1 KiB tile]
  int8_t* right;         // [members][GRAM_RIGHT_BYTES]: of the right one, for a part of a region
  float* region_sums;    // [members][GRAM_BF16_REGION_SUMS]
  RowScale* scales;      // [rows]
  float* largest;        // [members][2][padded]: max |x_k| and max |x̂_k| over a member's rows
  double* factors;       // [padded]: weight of the first digit
  float* pilots[2];      // raw, unit: [padded] what is subtracted from every row
  double* totals[2];     // raw, unit: [padded] sums of the columns of what is multiplied
  double* noise[2];      // raw, unit: [panels] rounding to the last digit, squared and summed
  double* sums[2];       // raw, unit: [group pair][32][32], lower triangle; null where not asked
  double* outs[2];       // raw, unit: [d, d]
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
