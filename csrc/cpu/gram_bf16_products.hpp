// Products of a block of bfloat16 rows that are cut into tiles: see gram_bf16.hpp.
//
// A block holds its left tiles alone, 2 bytes a number. The sums of a region of the result stay in
// float32 in the second-level cache of one processor while all parts of the block go by; its right
// tiles are made of the left ones there, part by part.
#pragma once

#include "cpu/amx_digits.hpp"
#include "cpu/gram_kernel.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

/// Rows of a step: the depth of a tile of bfloat16 numbers.
constexpr int64_t BF16_STEP = 32;
/// Steps of a part of a block.
constexpr int64_t BF16_STEPS = GRAM_BF16.part / BF16_STEP;
/// Tiles of a step of the right factor: u and the two parts of w²u.
constexpr int64_t BF16_PARTS = 3;

/// Where the left tile of a panel and a step lies: part of the block, panel, step.
inline int64_t bf16_tile_at(const GramScratch& scratch, int64_t panel, int64_t step) {
  const int64_t panels = scratch.padded / GRAM_PANEL;
  return ((step / BF16_STEPS * panels + panel) * BF16_STEPS + step % BF16_STEPS) * TILE_BYTES;
}

/// The upper halves of the numbers of two rows, side by side.
inline __m512i bf16_pair(__m512i even, __m512i odd) {
  return _mm512_ternarylogic_epi32(_mm512_set1_epi32(-0x10000), odd, _mm512_srli_epi32(even, 16),
                                   0xea);
}

/// What a block has in common: in units of 2^-norm_exponent, w² = common + v, and vu is taken as
/// `parts` numbers.
struct Bf16Weights {
  int norm_exponent = 0;
  int parts = 2;
  double common = 0.0;
};

/// Sums of tiles on their way into float64: out += sums · row factor · column factor.
struct TilePromotion {
  const float* sums;  // [16][16]
  const double* row_factors;
  const double* column_factors;
  double scale;
  double* out;
  const float* also = nullptr;  // [16][16], times `common`
  double common = 0.0;

  void promote() const {
    const __m512d scales = _mm512_set1_pd(scale);
    for (int half = 0; half < 2; ++half) {
      const __m512d columns = _mm512_loadu_pd(column_factors + 8 * half) * scales;
      for (int i = 0; i < GRAM_PANEL; ++i) {
        double* at = out + i * GRAM_GROUP + 8 * half;
        __m512d sum = load<f64s>(sums + 16 * i + 8 * half);
        if (also != nullptr) sum += load<f64s>(also + 16 * i + 8 * half) * common;
        const __m512d factor = columns * row_factors[i];
        _mm512_storeu_pd(at, _mm512_fmadd_pd(sum, factor, _mm512_loadu_pd(at)));
      }
    }
  }
};

template <bool RAW, bool UNIT>
class Bf16Products {
 public:
  Bf16Products(const GramScratch& scratch, Team& team, int member)
      : scratch_(scratch),
        team_(team),
        right_(scratch.right + member * GRAM_RIGHT_BYTES),
        sums_(scratch.region_sums + member * GRAM_BF16_REGION_SUMS) {}

  /// All pairs of a group and a panel on or below the diagonal, by regions.
  void multiply(int64_t steps, const Bf16Weights& weights) {
    weights_ = weights;
    const GramRegions regions(scratch_.padded / GRAM_GROUP, GRAM_BF16_REGION);
    for (int64_t item; (item = team_take(team_)) < regions.count();) {
      const GramRegion region = regions.at(item);
      if (region.first_group >= region.last_group) continue;
      for (int64_t k = 0; k < sums_of(region, region.last_panel); ++k) sums_[k] = 0.0f;
      for (int64_t step = 0; step < steps; step += BF16_STEPS) {
        multiply_part(region, step, steps - step < BF16_STEPS ? steps - step : BF16_STEPS);
      }
      promote(region);
    }
  }

 private:
  static constexpr int64_t SQUARE = 4 * 256;  // sums of a group and a panel: uuᵀ, and weighted
  // Of a group and a panel: uuᵀ, and the products with the parts of vu; or uuᵀ with two panels.
  typedef float Products[4][256];

  /// Whether uuᵀ is multiplied, and products of parts of w²u.
  bool squares() const { return RAW || weights_.parts < 2; }
  bool weighted() const { return UNIT && weights_.parts > 0; }

  /// How many sums of a region come before those of a panel.
  static int64_t sums_of(const GramRegion& region, int64_t panel) {
    return (panel - region.first_panel) * (region.last_group - region.first_group) * SQUARE;
  }
  static int64_t first_group(const GramRegion& region, int64_t panel) {
    return region.first_group > panel / 2 ? region.first_group : panel / 2;
  }

  /// Products on their way into the sums of the region while others are multiplied.
  struct Adding {
    const Products* from;
    float* to[2];  // of tiles 0 and 1, and 2 and 3; null where there are none

    /// Half a tile a step.
    void add(int64_t step, int64_t count) const {
      if (from == nullptr) return;
      const int64_t end = step + count < 8 ? step + count : 8;
      for (int64_t k = step; k < end; ++k) {
        if (to[k / 4] == nullptr) continue;
        const float* in = (*from)[0] + 128 * k;
        float* out = to[k / 4] + 128 * (k % 4);
#pragma GCC unroll 8
        for (int i = 0; i < 128; i += 16) {
          _mm512_store_ps(out + i, _mm512_load_ps(out + i) + _mm512_load_ps(in + i));
        }
      }
    }
  };

  /// Right tiles, which stay in the first-level cache, against the groups of a region: those of a
  /// panel, or of two where each has but one to a step.
  void multiply_part(const GramRegion& region, int64_t step, int64_t steps) {
    derive_right(region, step, steps);
    alignas(64) Products found[2];
    Adding before{nullptr, {nullptr, nullptr}};
    int turn = 0;
    static_assert(GRAM_BF16_REGION.panels % 2 == 0, "panels go two at a time");
    const int64_t width = weighted() ? 1 : 2;
    for (int64_t panel = region.first_panel; panel < region.last_panel; panel += width) {
      const int8_t* right = right_at(panel - region.first_panel, 0);
      float* sums[2] = {sums_ + sums_of(region, panel), sums_ + sums_of(region, panel + 1)};
      for (int64_t group = first_group(region, panel); group < region.last_group; ++group) {
        const int8_t* left = scratch_.digits + bf16_tile_at(scratch_, 2 * group, step);
        add_products(left, right, steps, found[turn], [&](int64_t k) { before.add(k, 1); });
        before.add(steps, 8);
        const int64_t at = (group - region.first_group) * SQUARE;
        before.from = &found[turn];
        before.to[0] = squares() ? sums[0] + at : nullptr;
        before.to[1] = weighted() ? sums[0] + at + SQUARE / 2 : sums[1] + at;
        turn ^= 1;
      }
    }
    before.add(0, 8);
  }

  int8_t* right_at(int64_t panel, int64_t step) const {
    return right_ + (panel * BF16_STEPS + step) * BF16_PARTS * TILE_BYTES;
  }

  void derive_right(const GramRegion& region, int64_t first, int64_t steps) const {
    for (int64_t panel = region.first_panel; panel < region.last_panel; ++panel) {
      for (int64_t step = 0; step < steps; ++step) {
        derive_step(scratch_.digits + bf16_tile_at(scratch_, panel, first + step),
                    scratch_.bf16.rows + (first + step) * BF16_STEP,
                    (first + step) * (scratch_.padded / GRAM_PANEL) + panel,
                    right_at(panel - region.first_panel, step));
      }
    }
    // GCC's tile loads do not name the memory they read.
    __asm__ volatile("" ::: "memory");
  }

  /// u of 32 rows, two rows to a word, and the high and low part of vu; `place` is another one for
  /// every step of every panel.
  void derive_step(const int8_t* left, const GramRow* rows, int64_t place, int8_t* right) const {
    const __m512i top = _mm512_set1_epi32(-0x10000), bottom = _mm512_set1_epi32(0xffff);
    transpose(left, right);
    if (!weighted()) return;
    __m512i random = random_words(16 * place);
    for (int two = 0; two < 16; ++two) {
      const __m512i u = _mm512_load_si512(right + 64 * two);
      // Multiples of the golden ratio: as even as can be, from a random start.
      random = _mm512_add_epi32(random, _mm512_set1_epi32(static_cast<int>(0x9e3779b9)));
      const Parts even =
          split(_mm512_slli_epi32(u, 16), rows[2 * two].square, _mm512_and_si512(random, bottom));
      const Parts odd =
          split(_mm512_and_si512(u, top), rows[2 * two + 1].square, _mm512_srli_epi32(random, 16));
      _mm512_store_si512(right + TILE_BYTES + 64 * two, bf16_pair(even.high, odd.high));
      _mm512_store_si512(right + 2 * TILE_BYTES + 64 * two, bf16_pair(even.low, odd.low));
    }
  }

  /// Two numbers of which the upper halves count.
  struct Parts {
    __m512i high, low;
  };

  /// wu in two parts, the last one that counts rounded up or down at random.
  Parts split(__m512i u, float weight, __m512i random) const {
    const __m512i half = _mm512_set1_epi32(0x8000), top = _mm512_set1_epi32(-0x10000);
    const __m512 x = _mm512_castsi512_ps(u), w = _mm512_set1_ps(weight);
    // A rounding of its own, which the compiler must not fuse with the subtractions below.
    const __m512 z = _mm512_mul_round_ps(x, w, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512i high =
        _mm512_add_epi32(_mm512_castps_si512(z), weights_.parts == 2 ? half : random);
    const __m512 rest =
        z - _mm512_castsi512_ps(_mm512_and_si512(high, top)) + _mm512_fmsub_ps(x, w, z);
    return {high, _mm512_add_epi32(_mm512_castps_si512(rest), random)};
  }

  template <class Between>
  void add_products(const int8_t* left, const int8_t* right, int64_t steps, Products& sums,
                    Between between) const {
    if (!weighted()) {
      add_two_panels(left, right, steps, sums, between);
    } else if (weights_.parts == 1) {
      add_parts<true, 1>(left, right, steps, sums, between);
    } else {
      add_parts<RAW, 2>(left, right, steps, sums, between);
    }
  }

  /// Adds up uuᵀ of a group and two panels over steps. Calls between(k) in step k. The tiles of the
  /// next step are loaded in this one: see Packing<bf16> in pair_histogram_packing.hpp.
  template <class Between>
  static void add_two_panels(const int8_t* a, const int8_t* b, int64_t steps, Products& sums,
                             Between between) {
    constexpr int64_t other = BF16_PARTS * BF16_STEPS;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    STREAM(4, a, 0);
    LOAD(6, b, 0);
    LOAD(7, b, other);
    STREAM(5, a, BF16_STEPS);
    for (int64_t k = 0; k < steps; ++k) {
      if (k + 1 < steps) a += TILE_BYTES, b += BF16_PARTS * TILE_BYTES;
      MULTIPLY_BF16(0, 4, 6);
      MULTIPLY_BF16(2, 4, 7);
      STREAM(4, a, 0);
      MULTIPLY_BF16(1, 5, 6);
      LOAD(6, b, 0);
      MULTIPLY_BF16(3, 5, 7);
      LOAD(7, b, other);
      STREAM(5, a, BF16_STEPS);
      between(k);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
  }

  /// Adds up a group and a panel over steps: uuᵀ, if so, and the products of u and the parts of
  /// vu. Calls between(k) in step k.
  template <bool SQUARES, int PARTS, class Between>
  static void add_parts(const int8_t* a, const int8_t* b, int64_t steps, Products& sums,
                        Between between) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < steps; ++k) {
      STREAM(4, a, 0);
      STREAM(5, a, BF16_STEPS);
      if constexpr (SQUARES) LOAD(6, b, 0);
      LOAD(7, b, 1);
      if constexpr (SQUARES) {
        MULTIPLY_BF16(0, 4, 6);
        MULTIPLY_BF16(1, 5, 6);
      }
      if constexpr (PARTS > 1) LOAD(6, b, 2);
      MULTIPLY_BF16(2, 4, 7);
      MULTIPLY_BF16(3, 5, 7);
      between(k);
      if constexpr (PARTS > 1) {
        MULTIPLY_BF16(2, 4, 6);
        MULTIPLY_BF16(3, 5, 6);
      }
      a += TILE_BYTES;
      b += BF16_PARTS * TILE_BYTES;
    }
    if (SQUARES) {
      _tile_stored(0, sums[0], 64);
      _tile_stored(1, sums[1], 64);
    }
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
  }

  void promote(const GramRegion& region) const {
    for (int64_t panel = region.first_panel; panel < region.last_panel; ++panel) {
      for (int64_t group = first_group(region, panel); group < region.last_group; ++group) {
        const int64_t at = sums_of(region, panel) + (group - region.first_group) * SQUARE;
        for (int tile = 0; tile < 4; ++tile) {
          if (tile / 2 == 0 ? RAW : UNIT) promote_tile(sums_ + at, tile, 2 * group, panel);
        }
      }
    }
  }

  void promote_tile(const float* square, int tile, int64_t first, int64_t other) const {
    const int64_t panel = first + tile % 2;
    TilePromotion made{square + 256 * tile, scratch_.factors + panel * GRAM_PANEL,
                       scratch_.factors + other * GRAM_PANEL, 1.0,
                       gram_place(scratch_.sums[tile / 2], panel, other)};
    if (tile / 2 == 1) {
      const float* common = square + 256 * (tile - 2);
      made.scale = __builtin_scalbn(1.0, -2 * weights_.norm_exponent);
      if (weights_.parts == 1) made.also = common, made.common = weights_.common;
      if (weights_.parts == 0) made.sums = common, made.scale *= weights_.common;
    }
    made.promote();
  }

  const GramScratch& scratch_;
  Team& team_;
  int8_t* right_;
  float* sums_;
  Bf16Weights weights_;
};

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
