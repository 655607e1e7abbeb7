// Second moments of bfloat16 rows by products of bfloat16 numbers, for the kernel of gram.
//
// About a pilot q of bfloat16 values, u = x − q is exact where q is 0 or q/2 <= x <= 2q in every
// row: q is the pilot of x in the columns that allow it, else 0. With w = 1/‖x‖,
//   Σ(x−p)(x−p)ᵀ = Σuuᵀ + Tdᵀ + dTᵀ + n ddᵀ,  T = Σu, d = q − p, and
//   Σ(x̂−p̂)(x̂−p̂)ᵀ = Σu(w²u)ᵀ + Aqᵀ + qAᵀ − Bp̂ᵀ − p̂Bᵀ + Σw² qqᵀ − Σw (qp̂ᵀ + p̂qᵀ) + n p̂p̂ᵀ,
//   A = Σw²u, B = Σwu.
// Products of u are exact; w²u is the sum of two bfloat16 numbers to 2⁻¹⁷, rounded up or down at
// random: rows of few norms would all err alike. Where the norms of a block are alike, w² = c + v
// with a small v, it is cu and one such number for vu (none where v is 0): the products of cu are
// those of u. Sums of products over some hundred rows are in float32, all others in float64.
#pragma once

#include "cpu/gram_bf16_products.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

/// Norms whose squares differ by no more than this share are alike.
constexpr double BF16_ALIKE = 0x1p-8;
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
        member_(member),
        products_(scratch, team, member) {}

  /// False, and nothing added, where the norms differ too much, or where too little remains of the
  /// products when they are moved to the pilots.
  bool run(int64_t first, int64_t count) {
    if (refused_ > 0 && refused_-- > 0) return false;
    if (multiply_block(first, count)) return true;
    refused_ = REFUSALS;
    return false;
  }

  /// Moves the sums about q to the pilots; all members call it.
  void settle() {
    team_wait(team_);
    if (member_ == 0) find_ends();
    team_wait(team_);
    const int64_t groups = scratch_.padded / GRAM_GROUP;
    for (int64_t group; (group = team_take(team_)) < groups;) {
      for (int64_t panel = 2 * group; panel < 2 * group + 2; ++panel) add_ends(panel);
    }
    team_wait(team_);
  }

 private:
  // Blocks after one that is refused are likely to be refused.
  static constexpr int REFUSALS = 3;

  bool multiply_block(int64_t first, int64_t count) {
    steps_ = (count + BF16_STEP - 1) / BF16_STEP;
    look_at_rows(first, count);
    team_wait(team_);
    if (!find_norm_exponent()) {
      team_wait(team_);
      return false;
    }
    if (!columns_allow_pilot()) {
      settle();
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
    products_.multiply(steps_, weights_);
    team_wait(team_);
    return true;
  }

  // Noise as shares of Σ‖u‖². Adding R products in float32 rounds a partial sum R/2 times by ε,
  // 2⁻²⁵ on average: ε²d/16 for sums of random sign, at most ε²R/24 more for sums of one sign. The
  // sums of P parts of R rows are added in float32 too, for at most ε²P/12.
  static constexpr double EPSILON = 0x1p-25;
  // Two parts of w²u leave 2^-18.2 of it, on one side of the product: rounded at random, so that
  // rows of one norm do not all err alike.
  static constexpr double SPLITTING = 0x1.8p-39;

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
        (static_cast<double>(rows_.d) / 16.0 + GRAM_BF16.part / 24.0 + GRAM_BLOCK_PARTS / 12.0);
    const double splitting = weights_.parts == 0 ? 0.0 : SPLITTING;
    for (int64_t panel = 0; panel < scratch_.padded / GRAM_PANEL; ++panel) {
      scratch_.noise[0][panel] += rounding * bf16_.squares[2 * panel];
      scratch_.noise[1][panel] += (rounding + splitting) * bf16_.squares[2 * panel + 1];
    }
  }

  void look_at_rows(int64_t first, int64_t count) {
    int16_t* least = bf16_.extremes + member_ * 2 * scratch_.padded;
    int16_t* largest = least + scratch_.padded;
    for (int64_t k = 0; k < scratch_.padded; ++k) least[k] = 0x7fff, largest[k] = -0x8000;
    Norms norms;
    // Shared out as they come: a thread may start late.
    for (int64_t step; (step = team_take(team_)) < steps_;) {
      for (int64_t r = step * BF16_STEP; r < (step + 1) * BF16_STEP; ++r) {
        const RowScale scale = r < count ? scale_of(first + r) : RowScale{nullptr, 0, 0, 0};
        look_at_row(scale, bf16_.rows[r], norms);
      }
    }
    for (int i = 0; i < 2; ++i) {
      bf16_.weights[2 * member_ + i] = norms.weights[i];
      bf16_.exponents[2 * member_ + i] = norms.exponents[i];
    }
  }

  /// The least and largest 1/‖x‖ of a member's rows, and their exponents.
  struct Norms {
    double weights[2] = {__builtin_inf(), 0.0};
    float exponents[2] = {__builtin_inff(), -__builtin_inff()};

    void widen(double weight, float exponent) {
      weights[0] = weights[0] < weight ? weights[0] : weight;
      weights[1] = weights[1] > weight ? weights[1] : weight;
      exponents[0] = exponents[0] < exponent ? exponents[0] : exponent;
      exponents[1] = exponents[1] > exponent ? exponents[1] : exponent;
    }
  };

  void look_at_row(const RowScale& scale, GramRow& row, Norms& norms) const {
    row = {scratch_.zero_row, 0.0, 0.0f, 0.0f, scale.row != nullptr};
    if (scale.inverse == 0.0f) return;
    const double inverse = static_cast<double>(scale.inverse) + scale.inverse_low;
    row.row = scale.row;
    row.weight = __builtin_scalbn(inverse, static_cast<int>(scale.exponent));
    norms.widen(row.weight, scale.exponent);
    widen(static_cast<const bf16*>(scale.row));
  }

  RowScale scale_of(int64_t i) const {
    if (mask_.data != nullptr && mask_.data[i * mask_.stride] == 0) return {nullptr, 0, 0, 0};
    return direction_of(static_cast<const bf16*>(rows_.data) + i * rows_.row_stride, rows_.d);
  }

  void widen(const bf16* row) const {
    int16_t* least = bf16_.extremes + member_ * 2 * scratch_.padded;
    int16_t* largest = least + scratch_.padded;
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
    weights_.norm_exponent = least <= largest ? -static_cast<int>(least) : 0;
    find_common();
    return !(largest - least > BF16_NORM_RANGE);
  }

  /// Sets c and how many parts are left of w²u: in units of the block.
  void find_common() {
    double least = __builtin_inf(), largest = 0.0;
    for (int member = 0; member < team_.members; ++member) {
      const double* weights = bf16_.weights + 2 * member;
      least = weights[0] < least ? weights[0] : least;
      largest = weights[1] > largest ? weights[1] : largest;
    }
    least *= norm_unit(), largest *= norm_unit();
    const double low = least * least, high = largest * largest;
    weights_.parts = low == high ? 0 : high - low <= BF16_ALIKE * high ? 1 : 2;
    weights_.common = weights_.parts == 2 || !(low <= high) ? 0.0 : (low + high) / 2;
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
    for (int64_t k = 0; k < rows_.d; ++k) {
      if (!allows_pilot(k)) bf16_.pilot[k] = 0.0;
    }
  }

  /// x as a float32 number, rounded up or down at random: rows of one norm do not all err alike.
  static float single(double x, uint64_t random) {
    constexpr uint64_t BEYOND = (uint64_t{1} << 29) - 1;  // what float32 has no bits for
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + (random >> 35)) & ~BEYOND;
    std::memcpy(&x, &bits, sizeof bits);
    return static_cast<float>(x);
  }

  void count_rows() const {
    double* counts = bf16_.block_counts;
    for (int i = 0; i < 4; ++i) counts[i] = 0.0;
    const double unit = norm_unit();
    uint64_t random = 1;
    for (int64_t r = 0; r < steps_ * BF16_STEP; ++r) {
      GramRow& row = bf16_.rows[r];
      row.scaled = static_cast<float>(row.weight * unit);
      random = random * 6364136223846793005u + 1442695040888963407u;
      row.square = single(row.weight * unit * row.weight * unit - weights_.common, random);
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

  /// A row of a panel: u, as float32 numbers of which the upper halves count.
  __m512i cut_row(const GramRow& row, Panel& panel) const {
    const __m512 x = load16(static_cast<const bf16*>(row.row) + panel.first, panel.columns);
    const __mmask16 some = row.weight != 0.0 ? 0xffff : 0;
    const __m512 u = _mm512_scalef_ps(_mm512_mask_sub_ps(x, some, x, panel.q), panel.exponents);
    panel.sums.add(u, row.weight);
    if (RAW) panel.sums.step[0] = _mm512_fmadd_ps(u, u, panel.sums.step[0]);
    if (UNIT) {
      const __m512 weighted = u * _mm512_set1_ps(row.scaled);
      panel.sums.step[1] = _mm512_fmadd_ps(weighted, weighted, panel.sums.step[1]);
    }
    return _mm512_castps_si512(u);
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
    alignas(64) int8_t tile[TILE_BYTES];
    const GramRow* rows = bf16_.rows + step * BF16_STEP;
    panel.sums.start();
    for (int two = 0; two < 16; ++two) {
      const __m512i even = cut_row(rows[2 * two], panel);
      const __m512i odd = cut_row(rows[2 * two + 1], panel);
      __builtin_prefetch(static_cast<const bf16*>(rows[2 * two + AHEAD].row) + panel.first);
      __builtin_prefetch(static_cast<const bf16*>(rows[2 * two + 1 + AHEAD].row) + panel.first);
      _mm512_store_si512(tile + 64 * two, bf16_pair(even, odd));
    }
    panel.sums.settle();
    transpose(tile, scratch_.digits + bf16_tile_at(scratch_, panel.first / GRAM_PANEL, step));
  }

  /// A power of two near the largest norm.
  double norm_unit() const { return __builtin_scalbn(1.0, weights_.norm_exponent); }

  double* end(int which, int side) const { return bf16_.ends[which] + side * scratch_.padded; }

  /// Sums about q and p differ by abᵀ + baᵀ + cpᵀ + pcᵀ: a and c of both Grams, and totals. b is d
  /// of the raw one and q of the other.
  void find_ends() const {
    const double* q = bf16_.pilot;
    const double n = bf16_.counts[0], empty = bf16_.counts[1];
    const double w = bf16_.counts[2], squares = bf16_.counts[3];
    for (int64_t k = 0; k < scratch_.padded; ++k) {
      if constexpr (RAW) {
        const double p = scratch_.pilots[0][k], d = q[k] - p;
        end(0, 0)[k] = bf16_.sums[0][k] + n / 2 * d;
        end(0, 1)[k] = empty / 2 * p;
        end(2, 0)[k] = d;
        scratch_.totals[0][k] += bf16_.sums[0][k] + n * d - empty * p;
      }
      if constexpr (UNIT) {
        const double p = scratch_.pilots[1][k];
        end(1, 0)[k] = bf16_.sums[2][k] + squares / 2 * q[k] - w / 2 * p;
        end(1, 1)[k] = -(bf16_.sums[1][k] + w / 2 * q[k] - n / 2 * p);
        end(2, 1)[k] = q[k];
        scratch_.totals[1][k] += bf16_.sums[1][k] + w * q[k] - n * p;
      }
    }
    for (int i = 0; i < 4; ++i) bf16_.counts[i] = 0.0;
    for (double* sums : bf16_.sums) {
      for (int64_t k = 0; k < scratch_.padded; ++k) sums[k] = 0.0;
    }
  }

  void add_ends(int64_t panel) const {
    for (int which = 0; which < 2; ++which) {
      if (which == 0 ? !RAW : !UNIT) continue;
      const double *a = end(which, 0), *b = end(2, which), *c = end(which, 1);
      const float* p = scratch_.pilots[which];
      for (int64_t other = 0; other <= panel; ++other) {
        double* out = gram_place(scratch_.sums[which], panel, other);
        for (int64_t i = panel * GRAM_PANEL; i < (panel + 1) * GRAM_PANEL; ++i) {
          for (int64_t j = 0; j < GRAM_PANEL; ++j) {
            const int64_t k = other * GRAM_PANEL + j;
            out[j] += a[i] * b[k] + b[i] * a[k] + c[i] * p[k] + p[i] * c[k];
          }
          out += GRAM_GROUP;
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
  Bf16Weights weights_;
  Bf16Products<RAW, UNIT> products_;
  int refused_ = 0;  // blocks still to be refused
};

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
