// How the AMX kernel of pair_histogram packs rows and multiplies them: bfloat16 rows as they are,
// others as three digits per number (see gram.hpp).
#pragma once

#include "cpu/amx_digits.hpp"
#include "cpu/pair_histogram_kernel.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

constexpr int DIGITS = 3;

// A number is cut into three digits of 8 bits, of 2¹⁶, 2⁸ and 1 units (a unit is 1.2e-7 of the
// row's largest number). |x̂₁| and |x̂₂| are the norms of a row's second and third digits, and its
// `rest` is p = max(|x̂₁|/2⁸, |x̂₂|). By Cauchy and Schwarz the products left out come to
//   six products (weights 0 to 2): at most |x̂₁||ŷ₂| + |x̂₂||ŷ₁| + |x̂₂||ŷ₂| <= 513 p q,
//   eight (weight 3 too): at most p q,
// and more are taken where that says more than 1e-6 or 3e-7. The rest of a cosine's error:
// roundings of float32, 5e-7 if all of them add up, and of the numbers to units, up or down at
// random (see dither): 2 exp(−2t²) is the chance that they carry one row's share of a cosine by t
// units, 2e-14 for 4 units, which are 5e-7 on a row that is all in one number and 7e-8 on 768
// normal ones.
constexpr float MOST_WITH_SIX = 1e-6f / 513;
constexpr float MOST_WITH_EIGHT = 3e-7f;

/// What is known of a packed row beside its numbers.
struct PackedRow {
  float scale;  // its first digits times this make a direction
  float rest;   // see MOST_WITH_SIX
};

/// 16 random numbers in [0, 1), the same for every row: floors of sums with them are roundings.
inline __m512 dither(int64_t k) {
  return _mm512_cvtepi32_ps(_mm512_srli_epi32(random_words(k), 8)) * _mm512_set1_ps(0x1p-24f);
}

/// How rows are packed and multiplied; T says which numbers they hold.
template <class T>
struct Packing {
  static constexpr int64_t STEP_COLUMNS = 64;
  static constexpr int64_t STEP_BYTES = DIGITS * TILE_BYTES;
  static constexpr int64_t SIDE = 1;
  typedef TileSums<DIGITS> Sums;

  /// Digits of one row into its place in a panel, step after step.
  static PackedRow pack(const T* row, int64_t d, int8_t* out) {
    const RowScale direction = direction_of(row, d);
    const __m512 up = _mm512_set1_ps(direction.exponent);
    __m512 largest = _mm512_setzero_ps();
    for (int64_t k = 0; k < d; k += 16) {
      const __m512 x = _mm512_abs_ps(load16(row + k, columns_from(k, d)));
      largest = _mm512_max_ps(largest, _mm512_scalef_ps(x, up));
    }
    // Units to a number; the largest number of three digits is 0x7f7f7f.
    const float most = _mm512_reduce_max_ps(largest);
    const float units = most > 0.0f ? 0x7f7f00 / most : 0.0f;
    __m512 squares[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t k = 0; k < d; k += 16) {
      const __m512 x = _mm512_scalef_ps(load16(row + k, columns_from(k, d)), up);
      const __m512 v = _mm512_floor_ps(_mm512_fmadd_ps(x, _mm512_set1_ps(units), dither(k)));
      const __m512i digits = cut(v, out + k / 64 * STEP_BYTES + k % 64);
      for (int i = 0; i < 2; ++i) {
        const __m512i shifted = _mm512_slli_epi32(digits, 16 + 8 * i);
        const __m512 digit = _mm512_cvtepi32_ps(_mm512_srai_epi32(shifted, 24));
        squares[i] = _mm512_fmadd_ps(digit, digit, squares[i]);
      }
    }
    if (units == 0.0f) return {0.0f, 0.0f};
    const double inverse = static_cast<double>(direction.inverse) + direction.inverse_low;
    const float last = _mm512_reduce_add_ps(squares[1]), middle = _mm512_reduce_add_ps(squares[0]);
    const double unit = inverse / units;
    return {static_cast<float>(0x1p16 * unit),
            static_cast<float>(unit * __builtin_sqrt(last > middle ? last : middle))};
  }

  /// Stores the digits of 16 whole numbers; returns them in the bytes of words.
  static __m512i cut(__m512 whole, int8_t* out) {
    const __m512i signs = _mm512_set1_epi32(0x808080);
    const __m512i v = _mm512_add_epi32(_mm512_cvtps_epi32(whole), signs);
    const __m512i digits = _mm512_xor_si512(v, signs);
    for (int digit = 0; digit < DIGITS; ++digit) {
      const __m512i byte = _mm512_srli_epi32(digits, 8 * (DIGITS - 1 - digit));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + digit * TILE_BYTES),
                       _mm512_cvtepi32_epi8(byte));
    }
    return digits;
  }

  /// Products of a panel and a panel of partners. step(run) is called for every step: it calls
  /// run(between), and between(k, count) comes after the k-th of `count` tile operations. With
  /// `back` the steps go from the last to the first: in turn with the other way, the tiles met last
  /// are still near for the next panel of partners.
  template <class Step>
  static inline __attribute__((always_inline)) void multiply(const int8_t* a, const int8_t* b,
                                                             int64_t, int64_t steps, float rest,
                                                             bool back, Sums (&sums)[1],
                                                             Step step) {
    if (rest <= MOST_WITH_SIX) {
      add<false>(a, b, steps, back, sums[0], step);
    } else {
      add<true>(a, b, steps, back, sums[0], step);
      move_up(sums[0][3], DIGIT_BITS, sums[0][2]);
      if (rest > MOST_WITH_EIGHT) add_last(a, b, steps, sums[0]);
    }
  }

  template <bool LAST, class Step>
  static inline __attribute__((always_inline)) void add(const int8_t* a, const int8_t* b,
                                                        int64_t steps, bool back, Sums& sums,
                                                        Step step) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    if constexpr (LAST) _tile_zero(3);
    for (int64_t k = 0; k < steps; ++k) {
      step([&](auto between) __attribute__((always_inline)) {
        const int64_t at = (back ? steps - 1 - k : k) * STEP_BYTES;
        add_step_of_three<LAST>(a + at, b + at, [&](int operation) __attribute__((always_inline)) {
          between(operation, OPERATIONS<DIGITS, LAST>);
        });
      });
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    if constexpr (LAST) _tile_stored(3, sums[3], 64);
  }

  /// Adds sums of a lighter weight, in units of a heavier one: all of a row stays within 32 bits.
  static void move_up(const int32_t (&light)[256], int bits, int32_t (&sum)[256]) {
    for (int k = 0; k < 256; ++k) sum[k] += light[k] >> bits;
  }

  /// Adds the products of last digits, of weight 4.
  static void add_last(const int8_t* a, const int8_t* b, int64_t steps, Sums& sums) {
    _tile_zero(0);
    for (int64_t step = 0; step < steps; ++step) {
      LOAD(6, a + step * STEP_BYTES, 2);
      STREAM(7, b + step * STEP_BYTES, 2);
      MULTIPLY(0, 6, 7);
    }
    _tile_stored(0, sums[3], 64);
    move_up(sums[3], 2 * DIGIT_BITS, sums[2]);
  }

  /// Of row k of the products, tile after tile: the row of a and the first partner, counted from
  /// those of the tiles, and its 16 sums.
  static uint32_t row_at(uint32_t k) { return k; }
  static uint32_t partner_at(uint32_t) { return 0; }
  static __m512 row_of(const Sums* sums, uint32_t k) {
    const auto sum = [&](int weight) { return _mm512_load_si512(sums[0][weight] + k * 16); };
    const __m512 light = _mm512_cvtepi32_ps(sum(2)), middle = _mm512_cvtepi32_ps(sum(1));
    const __m512 digit = _mm512_set1_ps(0x1p-8f);
    return (light * digit + middle) * digit + _mm512_cvtepi32_ps(sum(0));
  }
};

template <>
struct Packing<bf16> {
  static constexpr int64_t STEP_COLUMNS = 32;
  static constexpr int64_t STEP_BYTES = TILE_BYTES;
  static constexpr int64_t SIDE = 2;
  // The matrix unit adds in float32, where the roundings of equal products add up: of 1024 columns
  // to 7e-7 of their sum.
  static constexpr int64_t PART = 32;
  static constexpr int STEP_OPERATIONS = 8;
  typedef float Sums[256];

  static PackedRow pack(const bf16* row, int64_t d, int8_t* out) {
    for (int64_t k = 0; k < d; k += 32) {
      const int64_t left = d - k;
      const __mmask32 columns = left >= 32 ? ~0u : (1u << left) - 1;
      _mm512_storeu_si512(out + k / 32 * STEP_BYTES, _mm512_maskz_loadu_epi16(columns, row + k));
    }
    const RowScale direction = direction_of(row, d);
    const int exponent = static_cast<int>(direction.exponent);
    return {static_cast<float>(__builtin_scalbn(direction.inverse, exponent)), 0.0f};
  }

  /// Products of two panels and two panels of partners: see above. Sums round otherwise with
  /// `back`; it depends on a pair's place, not on the threads. Parts always go forwards.
  template <class Step>
  static inline __attribute__((always_inline)) void multiply(const int8_t* a, const int8_t* b,
                                                             int64_t panel, int64_t steps, float,
                                                             bool back, Sums (&sums)[4],
                                                             Step step) {
    for (int64_t first = 0; first < steps; first += PART) {
      const int64_t count = steps - first < PART ? steps - first : PART;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      const auto at_step = [&](int64_t k) {
        return (first + (back ? count - 1 - k : k)) * TILE_BYTES;
      };
      const int64_t at = at_step(0);
      LOAD_FROM(4, a + at);
      STREAM_FROM(6, b + at);
      STREAM_FROM(7, b + at + panel);
      LOAD_FROM(5, a + at + panel);
      for (int64_t k = 1; k <= count; ++k) {
        // Those of the next step are loaded in this one: where another thread runs on the core, a
        // product waits long for a tile just asked for.
        const int64_t next = at_step(k < count ? k : k - 1);
        step([&](auto between) __attribute__((always_inline)) {
          int operation = 0;
          const auto gap = [&]() __attribute__((always_inline)) {
            between(operation++, STEP_OPERATIONS);
          };
          MULTIPLY_BF16(0, 4, 6);
          MULTIPLY_BF16(1, 4, 7);
          LOAD_FROM(4, a + next);
          MULTIPLY_BF16(2, 5, 6);
          STREAM_FROM(6, b + next);
          MULTIPLY_BF16(3, 5, 7);
          STREAM_FROM(7, b + next + panel);
          LOAD_FROM(5, a + next + panel);
        });
      }
      if (first == 0) {
        store(sums);
      } else {
        alignas(64) Sums part[4];
        store(part);
        for (int tile = 0; tile < 4; ++tile) {
          for (int k = 0; k < 256; ++k) sums[tile][k] += part[tile][k];
        }
      }
    }
  }

  static void store(Sums (&sums)[4]) {
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
  }

  static uint32_t row_at(uint32_t k) {
    constexpr uint32_t PANEL = PAIR_PANEL;
    return k / (2 * PANEL) * PANEL + k % PANEL;
  }
  static uint32_t partner_at(uint32_t k) { return k & PAIR_PANEL; }
  static __m512 row_of(const Sums* sums, uint32_t k) {
    return _mm512_load_ps(reinterpret_cast<const float*>(sums) + k * 16);
  }
};

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
