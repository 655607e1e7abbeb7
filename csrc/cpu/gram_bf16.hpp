// Second moments of bfloat16 rows by products of bfloat16 numbers, for the kernel of gram.
//
// About a pilot q of bfloat16 values, u = x − q is exact where q is 0 or q/2 <= x <= 2q in every
// row: q is the pilot of x in the columns that allow it, else 0. With w = 1/‖x‖,
//   Σ(x−p)(x−p)ᵀ = Σuuᵀ + Tdᵀ + dTᵀ + n ddᵀ,  T = Σu, d = q − p, and
//   Σ(x̂−p̂)(x̂−p̂)ᵀ = Σu(w²u)ᵀ + Aqᵀ + qAᵀ − Bp̂ᵀ − p̂Bᵀ + Σw² qqᵀ − Σw (qp̂ᵀ + p̂qᵀ) + n p̂p̂ᵀ,
//   A = Σw²u, B = Σwu.
// Products of u are exact; w²u is the sum of two bfloat16 numbers to 2⁻¹⁷. Sums of products over
// some hundred rows are in float32, all others in float64.
#pragma once

#include "cpu/amx_digits.hpp"
#include "cpu/gram_kernel.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

/// Rows of a step: the depth of a tile of bfloat16 numbers.
constexpr int64_t BF16_STEP = 32;
/// Tiles of a step of the right factor: u and the two parts of w²u.
constexpr int64_t BF16_PARTS = 3;
/// Norms of a block reach over no more than this power of two: products stay within float32.
constexpr float BF16_NORM_RANGE = 32.0f;

/// The smallest and largest value of columns, as integers in the order of the values.
struct Extremes {
  static __m512i ordered(__m512i bits) {
    const __m512i sign = _mm512_srai_epi16(bits, 15);
    return _mm512_xor_si512(bits, _mm512_and_si512(sign, _mm512_set1_epi16(0x7fff)));
  }
  static float value(int16_t ordered) {
    const uint16_t bits = static_cast<uint16_t>(ordered < 0 ? ordered ^ 0x7fff : ordered);
    return static_cast<float>(cpu::ANISO_ISA::value(bf16{bits}));
  }
};

/// Sums of tiles on their way into float64: out += sums · row factor · column factor.
struct TilePromotion {
  const float* sums;  // [16][16]
  const double* row_factors;
  const double* column_factors;
  double scale;
  double* out;

  /// Eight rows from `first` on.
  void promote_rows(int first) const {
    const __m512d scales = _mm512_set1_pd(scale);
    const __m512d low = _mm512_loadu_pd(column_factors) * scales;
    const __m512d high = _mm512_loadu_pd(column_factors + 8) * scales;
#pragma GCC unroll 8
    for (int i = first; i < first + 8; ++i) {
      double* at = out + i * GRAM_GROUP;
      const __m512 sum = _mm512_load_ps(sums + 16 * i);
      const __m512d factor = _mm512_set1_pd(row_factors[i]);
      _mm512_storeu_pd(at, _mm512_fmadd_pd(low_as_f64(sum), low * factor, _mm512_loadu_pd(at)));
      _mm512_storeu_pd(at + 8,
                       _mm512_fmadd_pd(high_as_f64(sum), high * factor, _mm512_loadu_pd(at + 8)));
    }
  }
};

/// One block of bfloat16 rows on its way through the phases.
template <bool RAW, bool UNIT>
class Bf16Block {
 public:
  Bf16Block(const RowsView& rows, const MaskView& mask, const GramScratch& scratch, Team& team,
            int member)
      : rows_(rows),
        mask_(mask),
        scratch_(scratch),
        bf16_(scratch.bf16),
        team_(team),
        member_(member) {}

  /// False, and nothing added, where the norms differ too much, or where too little remains of the
  /// products when they are moved to the pilots.
  bool run(int64_t first, int64_t count) {
    if (refused_ > 0 && refused_-- > 0) return false;
    if (multiply_block(first, count)) return true;
    refused_ = REFUSALS;
    return false;
  }

  /// Moves the sums about q to the pilots; one member calls it.
  void settle() {
    const double* q = bf16_.pilot;
    double *a = bf16_.ends[0], *b = bf16_.ends[1], *pilot = bf16_.ends[2];
    const double n = bf16_.counts[0], empty = bf16_.counts[1];
    if constexpr (RAW) {
      const float* p = scratch_.pilots[0];
      for (int64_t k = 0; k < scratch_.padded; ++k) {
        b[k] = q[k] - p[k];
        a[k] = bf16_.sums[0][k] + n / 2 * b[k];
        pilot[k] = p[k];
        scratch_.totals[0][k] += bf16_.sums[0][k] + n * b[k] - empty * p[k];
      }
      add_outer(scratch_.sums[0], 1.0, a, b);
      add_outer(scratch_.sums[0], empty / 2, pilot, pilot);
    }
    if constexpr (UNIT) {
      const float* p = scratch_.pilots[1];
      const double w = bf16_.counts[2], squares = bf16_.counts[3];
      for (int64_t k = 0; k < scratch_.padded; ++k) {
        a[k] = bf16_.sums[2][k] + squares / 2 * q[k] - w / 2 * p[k];
        b[k] = -(bf16_.sums[1][k] + w / 2 * q[k] - n / 2 * p[k]);
        pilot[k] = p[k];
        scratch_.totals[1][k] += bf16_.sums[1][k] + w * q[k] - n * p[k];
      }
      add_outer(scratch_.sums[1], 1.0, a, q);
      add_outer(scratch_.sums[1], 1.0, b, pilot);
    }
    for (int i = 0; i < 4; ++i) bf16_.counts[i] = 0.0;
    for (int which = 0; which < 3; ++which) {
      for (int64_t k = 0; k < scratch_.padded; ++k) bf16_.sums[which][k] = 0.0;
    }
  }

 private:
  // Blocks after one that is refused are likely to be refused.
  static constexpr int REFUSALS = 15;

  bool multiply_block(int64_t first, int64_t count) {
    steps_ = (count + BF16_STEP - 1) / BF16_STEP;
    look_at_rows(first, count);
    team_wait(team_);
    if (!find_norm_exponent()) {
      team_wait(team_);
      return false;
    }
    if (!columns_allow_pilot()) {
      team_wait(team_);
      if (member_ == 0) drop_pilots();
      team_wait(team_);
    }
    if (member_ == 0) count_rows();
    team_wait(team_);
    const int64_t groups = scratch_.padded / GRAM_GROUP;
    for (int64_t group; (group = team_take(team_)) < groups;) cut(group);
    team_wait(team_);
    if (!enough_remains()) {
      team_wait(team_);
      return false;
    }
    if (member_ == 0) add_block();
    multiply();
    team_wait(team_);
    return true;
  }

  // Noise as shares of Σ‖u‖². Adding R products in float32 rounds a partial sum R/2 times by ε,
  // 2⁻²⁵ on average: ε²d/16 for sums of random sign, at most ε²R/24 more for sums of one sign.
  static constexpr double EPSILON = 0x1p-25;
  // Two parts of w²u leave 2^-18.7 of it, on one side of the product.
  static constexpr double SPLITTING = 0x1.8p-40;

  // What is multiplied may be so many times as large as what is left about the pilot, and that no
  // less than such a share of the rows: beyond, the variance of cosines is of second order in it.
  static constexpr double MOST_LOST = 4.0, LEAST_LEFT = 1.0 / 64.0;

  /// Σ‖wu‖² against Σ‖x̂ − p̂‖²: the error of the one is to be one of the other.
  bool enough_remains() const {
    if (!UNIT) return true;
    const double* counts = bf16_.block_counts;
    const float* p = scratch_.pilots[1];
    double multiplied = 0.0, left = counts[0];
    for (int64_t panel = 0; panel < scratch_.padded / GRAM_PANEL; ++panel) {
      multiplied += bf16_.squares[2 * panel + 1];
    }
    for (int64_t k = 0; k < rows_.d; ++k) {
      const double sum = bf16_.block[1][k] + counts[2] * bf16_.pilot[k];
      left += p[k] * (counts[0] * p[k] - 2.0 * sum);
    }
    return multiplied <= MOST_LOST * left && left >= LEAST_LEFT * counts[0];
  }

  /// Takes over the sums of the block.
  void add_block() const {
    for (int i = 0; i < 4; ++i) bf16_.counts[i] += bf16_.block_counts[i];
    for (int which = 0; which < 3; ++which) {
      for (int64_t k = 0; k < scratch_.padded; ++k) bf16_.sums[which][k] += bf16_.block[which][k];
    }
    const double rounding =
        EPSILON * EPSILON *
        (static_cast<double>(rows_.d) / 16.0 + 2.0 * GRAM_BF16_STEPS * BF16_STEP / 24.0);
    for (int64_t panel = 0; panel < scratch_.padded / GRAM_PANEL; ++panel) {
      scratch_.noise[0][panel] += rounding * bf16_.squares[2 * panel];
      scratch_.noise[1][panel] += (rounding + SPLITTING) * bf16_.squares[2 * panel + 1];
    }
  }

  void look_at_rows(int64_t first, int64_t count) {
    int16_t* least = bf16_.extremes + member_ * 2 * scratch_.padded;
    int16_t* largest = least + scratch_.padded;
    for (int64_t k = 0; k < scratch_.padded; ++k) least[k] = 0x7fff, largest[k] = -0x8000;
    float* exponents = bf16_.exponents + 2 * member_;
    exponents[0] = __builtin_inff(), exponents[1] = -__builtin_inff();
    const int64_t padded_rows = steps_ * BF16_STEP;
    const int64_t begin = padded_rows * member_ / team_.members;
    const int64_t end = padded_rows * (member_ + 1) / team_.members;
    for (int64_t r = begin; r < end; ++r) {
      const RowScale scale = r < count ? scale_of(first + r) : RowScale{nullptr, 0, 0, 0};
      GramRow& row = bf16_.rows[r];
      row = {scratch_.zero_row, 0.0, 0.0f, scale.row != nullptr};
      if (scale.inverse == 0.0f) continue;
      const double inverse = static_cast<double>(scale.inverse) + scale.inverse_low;
      row.row = scale.row;
      row.weight = __builtin_scalbn(inverse, static_cast<int>(scale.exponent));
      exponents[0] = exponents[0] < scale.exponent ? exponents[0] : scale.exponent;
      exponents[1] = exponents[1] > scale.exponent ? exponents[1] : scale.exponent;
      widen(static_cast<const bf16*>(scale.row), least, largest);
    }
  }

  RowScale scale_of(int64_t i) const {
    if (mask_.data != nullptr && mask_.data[i * mask_.stride] == 0) return {nullptr, 0, 0, 0};
    return direction_of(static_cast<const bf16*>(rows_.data) + i * rows_.row_stride, rows_.d);
  }

  void widen(const bf16* row, int16_t* least, int16_t* largest) const {
    for (int64_t k = 0; k < rows_.d; k += 32) {
      const int64_t left = rows_.d - k;
      const __mmask32 columns = left >= 32 ? ~0u : (1u << left) - 1;
      const __m512i x = Extremes::ordered(_mm512_maskz_loadu_epi16(columns, row + k));
      _mm512_storeu_si512(least + k, _mm512_min_epi16(x, _mm512_loadu_si512(least + k)));
      _mm512_storeu_si512(largest + k, _mm512_max_epi16(x, _mm512_loadu_si512(largest + k)));
    }
  }

  /// Sets the exponent of the largest norm; false where the smallest is too far from it.
  bool find_norm_exponent() {
    float least = __builtin_inff(), largest = -__builtin_inff();
    for (int member = 0; member < team_.members; ++member) {
      const float* exponents = bf16_.exponents + 2 * member;
      least = exponents[0] < least ? exponents[0] : least;
      largest = exponents[1] > largest ? exponents[1] : largest;
    }
    norm_exponent_ = least <= largest ? -static_cast<int>(least) : 0;
    return !(largest - least > BF16_NORM_RANGE);
  }

  /// The least (0) or largest (1) value of a column over the rows of all members.
  float extreme(int64_t k, int which) const {
    int16_t found = bf16_.extremes[which * scratch_.padded + k];
    for (int member = 1; member < team_.members; ++member) {
      const int16_t other = bf16_.extremes[(2 * member + which) * scratch_.padded + k];
      found = (which == 0) == (other < found) ? other : found;
    }
    return Extremes::value(found);
  }

  bool allows_pilot(int64_t k) const {
    const float q = static_cast<float>(bf16_.pilot[k]);
    const float least = extreme(k, 0), largest = extreme(k, 1);
    if (q == 0.0f || least > largest) return true;
    const float low = q > 0 ? least : -largest, high = q > 0 ? largest : -least;
    const float size = __builtin_fabsf(q);
    return low >= 0.5f * size && high <= 2.0f * size;
  }

  bool columns_allow_pilot() const {
    bool all = true;
    for (int64_t k = 0; k < rows_.d; ++k) all = all && allows_pilot(k);
    return all;
  }

  void drop_pilots() {
    settle();
    for (int64_t k = 0; k < rows_.d; ++k) {
      if (!allows_pilot(k)) bf16_.pilot[k] = 0.0;
    }
  }

  void count_rows() const {
    double* counts = bf16_.block_counts;
    for (int i = 0; i < 4; ++i) counts[i] = 0.0;
    const double unit = norm_unit();
    for (int64_t r = 0; r < steps_ * BF16_STEP; ++r) {
      GramRow& row = bf16_.rows[r];
      row.scaled = static_cast<float>(row.weight * unit);
      counts[0] += row.weight != 0.0;
      counts[1] += row.kept && row.weight == 0.0;
      counts[2] += row.weight;
      counts[3] += row.weight * row.weight;
    }
  }

  /// The exponents that bring the columns of a panel to at most 1; sets their factors.
  __m512 fix_columns(int64_t first) const {
    float exponents[16];
    for (int i = 0; i < 16; ++i) {
      const float q = static_cast<float>(bf16_.pilot[first + i]);
      const float least = __builtin_fabsf(extreme(first + i, 0));
      const float largest = __builtin_fabsf(extreme(first + i, 1));
      const float size = q != 0.0f ? __builtin_fabsf(q) : least > largest ? least : largest;
      const bool some = first + i < rows_.d && size > 0.0f && size <= __FLT_MAX__;
      const int exponent = some ? __builtin_ilogb(size) + 1 : 0;
      exponents[i] = static_cast<float>(-exponent);
      scratch_.factors[first + i] = some ? __builtin_scalbn(1.0, exponent) : 0.0;
    }
    return _mm512_loadu_ps(exponents);
  }

  /// Sums of a panel's columns in units of the columns: Σu, Σwu, Σw²u, and of their squares, Σu²
  /// and Σw²u², whose size alone counts: a step of them in float32.
  struct Sums {
    __m512d parts[3][2] = {};
    __m512d squares[2][2] = {};
    __m512 step[2];

    void start() { step[0] = step[1] = _mm512_setzero_ps(); }
    void add(__m512 u, double weight) {
      for (int half = 0; half < 2; ++half) {
        const __m512d x = half == 0 ? low_as_f64(u) : high_as_f64(u);
        if (RAW) parts[0][half] += x;
        if (!UNIT) continue;
        const __m512d weighted = x * _mm512_set1_pd(weight);
        parts[1][half] += weighted;
        parts[2][half] = _mm512_fmadd_pd(weighted, _mm512_set1_pd(weight), parts[2][half]);
      }
    }
    void settle() {
      for (int which = 0; which < 2; ++which) {
        squares[which][0] += low_as_f64(step[which]);
        squares[which][1] += high_as_f64(step[which]);
      }
    }
    void store(double* const (&sums)[3], int64_t first, const double* factors) const {
      for (int which = 0; which < 3; ++which) {
        for (int half = 0; half < 2; ++half) {
          const __m512d factor = _mm512_loadu_pd(factors + first + 8 * half);
          _mm512_storeu_pd(sums[which] + first + 8 * half, parts[which][half] * factor);
        }
      }
    }
    double square(int which, int64_t first, const double* factors) const {
      const __m512d low = _mm512_loadu_pd(factors + first);
      const __m512d high = _mm512_loadu_pd(factors + first + 8);
      return sum_lanes(squares[which][0] * low * low + squares[which][1] * high * high);
    }
  };

  /// A panel on its way into tiles.
  struct Panel {
    int64_t first;  // column
    __mmask16 columns;
    __m512 q, exponents;
    Sums sums;
  };

  /// A row of a panel as float32 numbers of which the upper halves count: u, and the high and low
  /// part of w²u.
  struct Row {
    __m512i u, high, low;
  };

  Row cut_row(const GramRow& row, Panel& panel) const {
    const __m512i half = _mm512_set1_epi32(0x8000), top = _mm512_set1_epi32(-0x10000);
    const __m512 x = load16(static_cast<const bf16*>(row.row) + panel.first, panel.columns);
    const __mmask16 some = row.weight != 0.0 ? 0xffff : 0;
    const __m512 u = _mm512_scalef_ps(_mm512_mask_sub_ps(x, some, x, panel.q), panel.exponents);
    panel.sums.add(u, row.weight);
    if (RAW) panel.sums.step[0] = _mm512_fmadd_ps(u, u, panel.sums.step[0]);
    if (!UNIT) return {_mm512_castps_si512(u), half, half};
    const __m512 weight = _mm512_set1_ps(row.scaled), weighted = u * weight, z = weighted * weight;
    panel.sums.step[1] = _mm512_fmadd_ps(weighted, weighted, panel.sums.step[1]);
    const __m512i rounded = _mm512_add_epi32(_mm512_castps_si512(z), half);
    const __m512 rest = z - _mm512_castsi512_ps(_mm512_and_si512(rounded, top));
    return {_mm512_castps_si512(u), rounded, _mm512_add_epi32(_mm512_castps_si512(rest), half)};
  }

  /// The upper halves of the numbers of two rows, side by side.
  static __m512i pair(__m512i even, __m512i odd) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi32(-0x10000), odd, _mm512_srli_epi32(even, 16),
                                     0xea);
  }

  /// The tiles of a group, both of its panels while a row's cache line is near.
  void cut(int64_t group) const {
    Panel panels[2];
    for (int side = 0; side < 2; ++side) panels[side] = panel_at(2 * group + side);
    for (int64_t step = 0; step < steps_; ++step) {
      for (Panel& panel : panels) cut_step(panel, step);
    }
    for (const Panel& panel : panels) {
      const int64_t at = 2 * (panel.first / GRAM_PANEL);
      panel.sums.store(bf16_.block, panel.first, scratch_.factors);
      bf16_.squares[at] = panel.sums.square(0, panel.first, scratch_.factors);
      const double scale = norm_unit() * norm_unit();
      bf16_.squares[at + 1] = panel.sums.square(1, panel.first, scratch_.factors) / scale;
    }
  }

  Panel panel_at(int64_t panel) const {
    const int64_t first = panel * GRAM_PANEL;
    const __m256 low = _mm512_cvtpd_ps(_mm512_loadu_pd(bf16_.pilot + first));
    const __m256 high = _mm512_cvtpd_ps(_mm512_loadu_pd(bf16_.pilot + first + 8));
    const __m512 q = _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
    return {first, columns_from(first, rows_.d), q, fix_columns(first), Sums{}};
  }

  void cut_step(Panel& panel, int64_t step) const {
    constexpr int64_t AHEAD = BF16_STEP;  // rows are further apart than prefetchers look
    const int64_t tile = panel.first / GRAM_PANEL * steps_ + step;
    int8_t* left = scratch_.digits[0] + tile * TILE_BYTES;
    int8_t* right = scratch_.digits[1] + tile * BF16_PARTS * TILE_BYTES;
    const GramRow* rows = bf16_.rows + step * BF16_STEP;
    panel.sums.start();
    for (int two = 0; two < 16; ++two) {
      const Row even = cut_row(rows[2 * two], panel);
      const Row odd = cut_row(rows[2 * two + 1], panel);
      __builtin_prefetch(static_cast<const bf16*>(rows[2 * two + AHEAD].row) + panel.first);
      __builtin_prefetch(static_cast<const bf16*>(rows[2 * two + 1 + AHEAD].row) + panel.first);
      _mm512_store_si512(right + 64 * two, pair(even.u, odd.u));
      if (!UNIT) continue;
      _mm512_store_si512(right + TILE_BYTES + 64 * two, pair(even.high, odd.high));
      _mm512_store_si512(right + 2 * TILE_BYTES + 64 * two, pair(even.low, odd.low));
    }
    panel.sums.settle();
    transpose(right, left);
  }

  /// A power of two near the largest norm.
  double norm_unit() const { return __builtin_scalbn(1.0, norm_exponent_); }

  /// All groups against a band of panels, which stays in the second-level cache, and of a group as
  /// many rows at a time as stay in the first.
  void multiply() const {
    const int64_t groups = scratch_.padded / GRAM_GROUP, panels = 2 * groups;
    const int64_t bands = (panels + GRAM_BF16_BAND - 1) / GRAM_BF16_BAND;
    for (int64_t item; (item = team_take(team_)) < groups * bands;) {
      const int64_t group = groups - 1 - item % groups, first = item / groups * GRAM_BF16_BAND;
      const int64_t end = 2 * group + 2;
      const int64_t last = first + GRAM_BF16_BAND < end ? first + GRAM_BF16_BAND : end;
      if (first >= last) continue;
      for (int64_t step = 0; step < steps_; step += 2 * GRAM_BF16_STEPS) {
        multiply_group(group, first, last, step);
      }
    }
  }

  /// Some steps of a group against a band, half of them at a time. The sums of a panel are promoted
  /// while the next one is multiplied.
  void multiply_group(int64_t group, int64_t first, int64_t last, int64_t step) const {
    alignas(64) float sums[GRAM_BF16_BAND][4][256];
    const int64_t end = least(step + 2 * GRAM_BF16_STEPS, steps_);
    const int64_t middle = least(step + GRAM_BF16_STEPS, end);
    for (int64_t other = first; other < last; ++other) {
      add_products(group, other, step, middle, false, sums[other - first], [](int) {});
    }
    TilePromotion before[4] = {};
    const double scale = __builtin_scalbn(1.0, -2 * norm_exponent_);
    for (int64_t other = first; other < last; ++other) {
      float (&found)[4][256] = sums[other - first];
      if (middle < end) {
        add_products(group, other, middle, end, true, found, [&](int k) { promote(before, k, 1); });
        promote(before, static_cast<int>(end - middle), GRAM_BF16_STEPS);
      } else {
        promote(before, 0, GRAM_BF16_STEPS);
      }
      for (int tile = 0; tile < 4; ++tile) {
        const int which = tile / 2;
        if (which == 0 ? !RAW : !UNIT) continue;
        const int64_t panel = 2 * group + tile % 2;
        before[tile] = {found[tile], scratch_.factors + panel * GRAM_PANEL,
                        scratch_.factors + other * GRAM_PANEL, which == 0 ? 1.0 : scale,
                        gram_place(scratch_.sums[which], panel, other)};
      }
    }
    promote(before, 0, GRAM_BF16_STEPS);
  }

  static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  /// The share of `count` steps from `step` on in the promotion of four tiles: half a tile a step.
  static void promote(const TilePromotion (&tiles)[4], int step, int count) {
    static_assert(GRAM_BF16_STEPS == 8);
    for (int k = step; k < 8 && k < step + count; ++k) {
      const TilePromotion& tile = tiles[k / 2];
      if (tile.sums != nullptr) tile.promote_rows(k % 2 * 8);
    }
  }

  /// Adds up a group and a panel over steps: uuᵀ and u(w²u)ᵀ, two panels each. Calls between(k)
  /// after step k.
  template <class Between>
  void add_products(int64_t group, int64_t other, int64_t step, int64_t end, bool go_on,
                    float (&sums)[4][256], Between between) const {
    const int64_t panel = steps_ * TILE_BYTES;
    const int8_t* a = scratch_.digits[0] + 2 * group * panel + step * TILE_BYTES;
    const int8_t* b = scratch_.digits[1] + (other * panel + step * TILE_BYTES) * BF16_PARTS;
    if (go_on) {
      _tile_loadd(0, sums[0], 64);
      _tile_loadd(1, sums[1], 64);
      _tile_loadd(2, sums[2], 64);
      _tile_loadd(3, sums[3], 64);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int k = 0; k < end - step; ++k) {
      _tile_loadd(4, a, 64);
      _tile_loadd(5, a + panel, 64);
      if constexpr (RAW) {
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
      }
      if constexpr (UNIT) {
        _tile_loadd(7, b + TILE_BYTES, 64);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(6, b + 2 * TILE_BYTES, 64);
        _tile_dpbf16ps(2, 4, 6);
        _tile_dpbf16ps(3, 5, 6);
      }
      between(k);
      a += TILE_BYTES;
      b += BF16_PARTS * TILE_BYTES;
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
  }

  /// sums += scale · (abᵀ + baᵀ)
  void add_outer(double* sums, double scale, const double* a, const double* b) const {
    if (scale == 0.0) return;
    for (int64_t panel = 0; panel < scratch_.padded / GRAM_PANEL; ++panel) {
      for (int64_t other = 0; other <= panel; ++other) {
        double* out = gram_place(sums, panel, other);
        for (int64_t i = 0; i < GRAM_PANEL; ++i) {
          const double a_i = scale * a[panel * GRAM_PANEL + i],
                       b_i = scale * b[panel * GRAM_PANEL + i];
          for (int64_t j = 0; j < GRAM_PANEL; ++j) {
            out[i * GRAM_GROUP + j] +=
                a_i * b[other * GRAM_PANEL + j] + b_i * a[other * GRAM_PANEL + j];
          }
        }
      }
    }
  }

  const RowsView& rows_;
  const MaskView& mask_;
  const GramScratch& scratch_;
  const GramBf16& bf16_;
  Team& team_;
  int member_;
  int64_t steps_ = 0;
  int norm_exponent_ = 0;
  int refused_ = 0;  // blocks still to be refused
};

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
