// The kernel of gram for processors with AMX. Phases over a block of rows, with a barrier between:
// scales of rows and columns, digits of every panel, products of every pair of groups.
#include "cpu/gram_kernel.hpp"

#include <immintrin.h>

#include "cpu/simd.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

constexpr int64_t TILE_BYTES = 1024;
constexpr int DIGIT_BITS = 8;

template <class T>
inline __m512 load16(const T* p, __mmask16 columns);
template <>
inline __m512 load16(const float* p, __mmask16 columns) {
  return _mm512_maskz_loadu_ps(columns, p);
}
template <>
inline __m512 load16(const bf16* p, __mmask16 columns) {
  const __m256i bits = _mm256_maskz_loadu_epi16(columns, p);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
template <>
inline __m512 load16(const f16* p, __mmask16 columns) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(columns, p));
}

inline __mmask16 columns_from(int64_t k, int64_t d) {
  const int64_t left = d - k;
  return left >= 16 ? 0xffff : static_cast<__mmask16>((1u << (left > 0 ? left : 0)) - 1);
}

// Exact sums of a tile by weight, the last one lightest: digits i and j have weight i + j. Besides
// the first S weights, the next one counts where it does not average out.
template <int S>
constexpr int WEIGHTS = S + 1;
template <int S>
using TileSums = int32_t[WEIGHTS<S>][256];

#define LOAD_LEFT(digit) _tile_loadd(6, a + (digit) * TILE_BYTES, 64)
#define LOAD_RIGHT(digit) _tile_loadd(7, b + (digit) * TILE_BYTES, 64)
#define MULTIPLY(sum, order) \
  _tile_dpbssd(sum, 6, 7);   \
  ask_for_next<S>(a, b, order)

/// Some of the next step's cache lines with every product: asked for evenly, they arrive in time.
template <int S>
inline void ask_for_next(const int8_t* a, const int8_t* b, int order) {
  constexpr int LINES = S * TILE_BYTES / 64, PRODUCTS = S == 6 ? 21 : 8;
#pragma GCC unroll 8
  for (int i = order * LINES / PRODUCTS; i < (order + 1) * LINES / PRODUCTS; ++i) {
    __builtin_prefetch(a + S * TILE_BYTES + 64 * i);
    __builtin_prefetch(b + S * TILE_BYTES + 64 * i);
  }
}

/// Adds the products of the digits of two panels over all steps. The order keeps products onto one
/// sum apart (a product takes 52 cycles, one starts every 16) and reloads one operand at a time.
template <int S>
void add_products(const int8_t* a, const int8_t* b, int64_t steps, TileSums<S>& sums);

template <>
void add_products<6>(const int8_t* a, const int8_t* b, int64_t steps, TileSums<6>& sums) {
  constexpr int64_t S = 6;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (int64_t step = 0; step < steps; ++step) {
    LOAD_LEFT(1);
    LOAD_RIGHT(2);
    MULTIPLY(3, 0);
    LOAD_RIGHT(1);
    MULTIPLY(2, 1);
    LOAD_RIGHT(4);
    MULTIPLY(5, 2);
    LOAD_RIGHT(3);
    MULTIPLY(4, 3);
    LOAD_RIGHT(0);
    MULTIPLY(1, 4);
    LOAD_LEFT(3);
    MULTIPLY(3, 5);
    LOAD_LEFT(5);
    MULTIPLY(5, 6);
    LOAD_LEFT(2);
    MULTIPLY(2, 7);
    LOAD_LEFT(4);
    MULTIPLY(4, 8);
    LOAD_LEFT(0);
    MULTIPLY(0, 9);
    LOAD_RIGHT(5);
    MULTIPLY(5, 10);
    LOAD_RIGHT(3);
    MULTIPLY(3, 11);
    LOAD_RIGHT(4);
    MULTIPLY(4, 12);
    LOAD_RIGHT(1);
    MULTIPLY(1, 13);
    LOAD_LEFT(4);
    MULTIPLY(5, 14);
    LOAD_LEFT(2);
    MULTIPLY(3, 15);
    LOAD_LEFT(3);
    MULTIPLY(4, 16);
    LOAD_RIGHT(2);
    MULTIPLY(5, 17);
    LOAD_LEFT(0);
    MULTIPLY(2, 18);
    LOAD_LEFT(2);
    MULTIPLY(4, 19);
    LOAD_RIGHT(3);
    MULTIPLY(5, 20);
    a += S * TILE_BYTES;
    b += S * TILE_BYTES;
  }
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  _tile_stored(4, sums[4], 64);
  _tile_stored(5, sums[5], 64);
}

template <>
void add_products<3>(const int8_t* a, const int8_t* b, int64_t steps, TileSums<3>& sums) {
  constexpr int64_t S = 3;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  for (int64_t step = 0; step < steps; ++step) {
    LOAD_LEFT(1);
    LOAD_RIGHT(2);
    MULTIPLY(3, 0);
    _tile_loadd(5, b + TILE_BYTES, 64);
    _tile_dpbssd(4, 6, 5);
    ask_for_next<S>(a, b, 1);
    LOAD_RIGHT(0);
    MULTIPLY(1, 2);
    LOAD_LEFT(2);
    MULTIPLY(2, 3);
    _tile_dpbssd(3, 6, 5);
    ask_for_next<S>(a, b, 4);
    LOAD_LEFT(0);
    MULTIPLY(0, 5);
    _tile_dpbssd(1, 6, 5);
    ask_for_next<S>(a, b, 6);
    LOAD_RIGHT(2);
    MULTIPLY(2, 7);
    a += S * TILE_BYTES;
    b += S * TILE_BYTES;
  }
  alignas(64) int32_t more[256];
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  _tile_stored(4, more, 64);
  for (int i = 0; i < 256; ++i) sums[2][i] += more[i];
}

/// Squares of digit 3 (of 6) of two groups: too light for the first weights, but all of one sign on
/// the diagonal and between columns that agree.
void add_squares(const int8_t* a, const int8_t* b, int64_t steps, TileSums<6> (&sums)[4]) {
  constexpr int64_t STEP = 6 * TILE_BYTES;
  const int64_t panel = steps * STEP;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t at = 3 * TILE_BYTES; at < panel; at += STEP) {
    _tile_loadd(4, a + at, 64);
    _tile_loadd(6, b + at, 64);
    _tile_dpbssd(0, 4, 6);
    _tile_loadd(5, a + at + panel, 64);
    _tile_dpbssd(2, 5, 6);
    _tile_loadd(7, b + at + panel, 64);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_stored(0, sums[0][6], 64);
  _tile_stored(1, sums[1][6], 64);
  _tile_stored(2, sums[2][6], 64);
  _tile_stored(3, sums[3][6], 64);
}

/// One block of rows on its way through the phases.
template <class T, int S>
class Block {
 public:
  Block(const RowsView& rows, const MaskView& mask, const GramScratch& scratch, Team& team,
        int member)
      : rows_(rows), mask_(mask), scratch_(scratch), team_(team), member_(member) {}

  void run(int64_t first, int64_t count) {
    count_ = count;
    steps_ = (count + GRAM_STEP - 1) / GRAM_STEP;
    scale_rows(first);
    team_wait(team_);
    for (int which = 0; which < 2; ++which) {
      if (scratch_.sums[which] == nullptr) continue;
      const int64_t panels = scratch_.padded / GRAM_PANEL;
      for (int64_t panel; (panel = team_take(team_)) < panels;) {
        which == 0 ? cut<false>(panel) : cut<true>(panel);
      }
      team_wait(team_);
      multiply(scratch_.sums[which]);
      team_wait(team_);
    }
  }

 private:
  // --- scales -------------------------------------------------------------------------------

  void scale_rows(int64_t first) {
    float* largest = scratch_.largest + member_ * 2 * scratch_.padded;
    for (int64_t k = 0; k < 2 * scratch_.padded; ++k) largest[k] = 0.0f;
    const int64_t padded_rows = steps_ * GRAM_STEP;
    const int64_t begin = padded_rows * member_ / team_.members;
    const int64_t end = padded_rows * (member_ + 1) / team_.members;
    for (int64_t r = begin; r < end; ++r) {
      scratch_.scales[r] = r < count_ ? scale_of(first + r) : RowScale{scratch_.zero_row, 0, 0, 0};
      grow(scratch_.scales[r], largest);
    }
  }

  RowScale scale_of(int64_t i) const {
    const RowScale left_out{scratch_.zero_row, 0, 0, 0};
    if (mask_.data != nullptr && mask_.data[i * mask_.stride] == 0) return left_out;
    const T* row = static_cast<const T*>(rows_.data) + i * rows_.row_stride;
    const double squares = sum_of_squares(row);
    if (!(squares <= __DBL_MAX__)) return left_out;
    if (squares == 0.0) return {row, 0, 0, 0};
    const double norm = __builtin_sqrt(squares);
    const int exponent = -__builtin_ilogb(norm);
    const double inverse = 1.0 / __builtin_scalbn(norm, exponent);
    const float high = static_cast<float>(inverse);
    return {row, static_cast<float>(exponent), high, static_cast<float>(inverse - high)};
  }

  // Squares of float32 and half-precision values are exact in float64 and never leave its range.
  double sum_of_squares(const T* row) const {
    __m512d acc[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
    for (int64_t k = 0; k < rows_.d; k += 16) {
      const __m512 x = load16(row + k, columns_from(k, rows_.d));
      const __m512d low = low_as_f64(x), high = high_as_f64(x);
      acc[0] = _mm512_fmadd_pd(low, low, acc[0]);
      acc[1] = _mm512_fmadd_pd(high, high, acc[1]);
    }
    return sum_lanes(acc[0] + acc[1]);
  }

  void grow(const RowScale& scale, float* largest) const {
    const T* row = static_cast<const T*>(scale.row);
    const __m512 exponent = _mm512_set1_ps(scale.exponent), inverse = _mm512_set1_ps(scale.inverse);
    float* largest_unit = largest + scratch_.padded;
    for (int64_t k = 0; k < rows_.d; k += 16) {
      const __m512 x = _mm512_abs_ps(load16(row + k, columns_from(k, rows_.d)));
      const __m512 unit = _mm512_scalef_ps(x, exponent) * inverse;
      _mm512_storeu_ps(largest + k, _mm512_max_ps(x, _mm512_loadu_ps(largest + k)));
      _mm512_storeu_ps(largest_unit + k, _mm512_max_ps(unit, _mm512_loadu_ps(largest_unit + k)));
    }
  }

  // --- digits -------------------------------------------------------------------------------

  /// The exponents that bring the columns of a panel to 24-bit fixed point; sets their factors.
  __m512 fix_columns(int64_t panel, bool unit) const {
    __m512 largest = _mm512_setzero_ps();
    for (int member = 0; member < team_.members; ++member) {
      const float* part = scratch_.largest + (2 * member + unit) * scratch_.padded;
      largest = _mm512_max_ps(largest, _mm512_loadu_ps(part + panel * GRAM_PANEL));
    }
    // The largest 24-bit number whose digits are all in [-128, 127] is 0x7f7f7f = 0.996 · 2²³; the
    // margin also covers the rounding of |x̂|.
    float values[16], exponents[16];
    double noise = 0.0;
    _mm512_storeu_ps(values, largest);
    for (int k = 0; k < 16; ++k) {
      const int exponent = values[k] == 0.0f ? 0 : 22 - __builtin_ilogb(values[k] * 1.005);
      exponents[k] = static_cast<float>(exponent);
      if (values[k] != 0.0f) noise += __builtin_scalbn(1.0, -2 * (exponent + (S - 3) * DIGIT_BITS));
      scratch_.factors[panel * GRAM_PANEL + k] =
          values[k] == 0.0f ? 0.0 : __builtin_scalbn(1.0, 2 * DIGIT_BITS - exponent);
    }
    // Rounding errors lie evenly within half a unit of the last digit: variance 1/12.
    scratch_.noise[unit][panel] += noise * static_cast<double>(count_) / 12.0;
    return _mm512_loadu_ps(exponents);
  }

  template <bool unit>
  void cut(int64_t panel) const {
    const __m512 exponents = fix_columns(panel, unit);
    const int64_t first = panel * GRAM_PANEL;
    const __mmask16 columns = columns_from(first, rows_.d);
    Sums sums;
    for (int64_t step = 0; step < steps_; ++step) {
      int8_t* tiles[2];
      for (int side = 0; side < 2; ++side) {
        tiles[side] = scratch_.digits[side] + (panel * steps_ + step) * S * TILE_BYTES;
      }
      for (int quad = 0; quad < GRAM_PANEL; ++quad) {
        __m512i high[4], low[4];
        for (int i = 0; i < 4; ++i) {
          fix<unit>(scratch_.scales[step * GRAM_STEP + quad * 4 + i], first, columns, exponents,
                    high[i], low[i], sums);
        }
        store_digits(high, tiles[1] + quad * 64);
        if (S == 6) store_digits(low, tiles[1] + 3 * TILE_BYTES + quad * 64);
      }
      for (int digit = 0; digit < S; ++digit) {
        transpose(tiles[1] + digit * TILE_BYTES, tiles[0] + digit * TILE_BYTES);
      }
      sums.settle();
    }
    sums.add_to(scratch_.totals[unit] + first, scratch_.factors + first);
  }

  /// Columns of fixed-point numbers, summed exactly: a step of 24-bit numbers stays within int32.
  struct Sums {
    __m512i high = _mm512_setzero_si512(), low = high;
    __m512d settled[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};

    void settle() {
      const __m512d down = _mm512_set1_pd(0x1p-24);
      for (int half = 0; half < 2; ++half) {
        const __m512d tail = _mm512_cvtepi32_pd(half_of(low, half));
        const __m512d head = _mm512_cvtepi32_pd(half_of(high, half));
        settled[half] += _mm512_fmadd_pd(tail, down, head);
      }
      high = low = _mm512_setzero_si512();
    }
    void add_to(double* totals, const double* factors) const {
      const __m512d unit_of_first_digit = _mm512_set1_pd(0x1p-16);
      for (int half = 0; half < 2; ++half) {
        double* out = totals + 8 * half;
        const __m512d factor = _mm512_loadu_pd(factors + 8 * half) * unit_of_first_digit;
        _mm512_storeu_pd(out, _mm512_fmadd_pd(settled[half], factor, _mm512_loadu_pd(out)));
      }
    }
    static __m256i half_of(__m512i v, int half) {
      return half == 0 ? _mm512_castsi512_si256(v) : _mm512_extracti64x4_epi64(v, 1);
    }
  };

  /// 16 columns of a row in fixed point, as three digits in `high` and three more in `low`.
  template <bool unit>
  static void fix(const RowScale& scale, int64_t first, __mmask16 columns, __m512 exponents,
                  __m512i& high, __m512i& low, Sums& sums) {
    const __m512i signs = _mm512_set1_epi32(0x808080);
    __m512 x = load16(static_cast<const T*>(scale.row) + first, columns);
    __m512 rest = _mm512_setzero_ps();
    if (unit) {
      const __m512 inverse = _mm512_set1_ps(scale.inverse);
      const __m512 y = _mm512_scalef_ps(x, _mm512_set1_ps(scale.exponent));
      x = y * inverse;
      if (S == 6) {  // what the product rounds away, and what the float32 inverse leaves out
        rest =
            _mm512_fmadd_ps(y, _mm512_set1_ps(scale.inverse_low), _mm512_fmsub_ps(y, inverse, x));
        rest = _mm512_scalef_ps(rest, exponents);
      }
    }
    x = _mm512_scalef_ps(x, exponents);
    __m512i v = _mm512_cvtps_epi32(x);
    if (S == 6) {
      rest = rest + (x - _mm512_cvtepi32_ps(v));
      __m512i u = _mm512_cvtps_epi32(rest * 0x1p24f);
      u = _mm512_add_epi32(u, signs);
      v = _mm512_add_epi32(v, _mm512_srai_epi32(u, 24));
      low = _mm512_xor_si512(u, signs);
      const __m512i digits = _mm512_and_si512(u, _mm512_set1_epi32(0xffffff));
      sums.low = _mm512_add_epi32(sums.low, _mm512_sub_epi32(digits, signs));
    }
    sums.high = _mm512_add_epi32(sums.high, v);
    high = _mm512_xor_si512(_mm512_add_epi32(v, signs), signs);
  }

  /// Digits 0 to 2 (bytes 2 to 0) of four rows, four rows to a 32-bit word.
  static void store_digits(const __m512i (&u)[4], int8_t* out) {
    const auto select = [](uint32_t mask, __m512i yes, __m512i no) {
      return _mm512_ternarylogic_epi32(_mm512_set1_epi32(static_cast<int>(mask)), yes, no, 0xca);
    };
    const __m512i even01 = select(0xff00ff00, _mm512_slli_epi32(u[1], 8), u[0]);
    const __m512i even23 = select(0xff00ff00, _mm512_slli_epi32(u[3], 8), u[2]);
    const __m512i odd01 = select(0x0000ff00, u[1], _mm512_srli_epi32(u[0], 8));
    const __m512i odd23 = select(0x0000ff00, u[3], _mm512_srli_epi32(u[2], 8));
    constexpr int64_t plane = TILE_BYTES;
    _mm512_store_si512(out, select(0xffff0000, even23, _mm512_srli_epi32(even01, 16)));
    _mm512_store_si512(out + plane, select(0xffff0000, _mm512_slli_epi32(odd23, 16), odd01));
    _mm512_store_si512(out + 2 * plane, select(0xffff0000, _mm512_slli_epi32(even23, 16), even01));
  }

  /// 16 × 16 words.
  static void transpose(const int8_t* in, int8_t* out) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_load_si512(in + 64 * i);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
      b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
      a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
      a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
      a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
      b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
      b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
      b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      _mm512_store_si512(out + 64 * i, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
      _mm512_store_si512(out + 64 * (i + 4), _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88));
      _mm512_store_si512(out + 64 * (i + 8), _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
      _mm512_store_si512(out + 64 * (i + 12), _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd));
    }
  }

  // --- products -----------------------------------------------------------------------------

  /// All pairs of groups on or below the diagonal, a group against a band of others at a time, so
  /// that the band's digits stay in the second-level cache.
  void multiply(double* sums) const {
    const int64_t groups = scratch_.padded / GRAM_GROUP;
    const int64_t bands = (groups + GRAM_BAND - 1) / GRAM_BAND;
    for (int64_t item; (item = team_take(team_)) < groups * bands;) {
      const int64_t group = item % groups, first = item / groups * GRAM_BAND;
      const int64_t last = first + GRAM_BAND < group + 1 ? first + GRAM_BAND : group + 1;
      for (int64_t other = first; other < last; ++other) {
        square(group, other, sums + (group * (group + 1) / 2 + other) * GRAM_GROUP * GRAM_GROUP);
      }
    }
  }

  void square(int64_t group, int64_t other, double* sums) const {
    alignas(64) TileSums<S> products[4];
    const int64_t panel = S * steps_ * TILE_BYTES;
    const int8_t* left = scratch_.digits[0] + 2 * group * panel;
    const int8_t* right = scratch_.digits[1] + 2 * other * panel;
    for (int tile = 0; tile < 4; ++tile) {
      add_products<S>(left + tile / 2 * panel, right + tile % 2 * panel, steps_, products[tile]);
    }
    if constexpr (S == 6) add_squares(left, right, steps_, products);
    for (int tile = 0; tile < 4; ++tile) {
      const int64_t row = tile / 2 * GRAM_PANEL, column = tile % 2 * GRAM_PANEL;
      promote(products[tile], scratch_.factors + group * GRAM_GROUP + row,
              scratch_.factors + other * GRAM_GROUP + column, sums + row * GRAM_GROUP + column);
    }
  }

  /// sums += Σ_w products[w] 2^(-8w) · row factor · column factor. What stands below 2^(-8) (S = 3)
  /// or 2^(-24) (S = 6) of the first weight is added in float32: its rounding lies beyond the
  /// digits.
  static void promote(const TileSums<S>& products, const double* row_factors,
                      const double* column_factors, double* sums) {
    constexpr int EXACT = S == 6 ? 3 : 1;
    const __m512d down = _mm512_set1_pd(0x1p-8);
    for (int i = 0; i < 16; ++i) {
      __m512 tail = _mm512_setzero_ps();
      for (int weight = S; weight >= EXACT; --weight) {
        const __m512 product = _mm512_cvtepi32_ps(_mm512_load_si512(&products[weight][16 * i]));
        tail = _mm512_fmadd_ps(tail, _mm512_set1_ps(0x1p-8f), product);
      }
      const __m512d row_factor = _mm512_set1_pd(row_factors[i]);
      for (int half = 0; half < 2; ++half) {
        __m512d total = half == 0 ? low_as_f64(tail) : high_as_f64(tail);
        for (int weight = EXACT - 1; weight >= 0; --weight) {
          const __m512d product = _mm512_cvtepi32_pd(_mm256_load_si256(
              reinterpret_cast<const __m256i*>(&products[weight][16 * i + 8 * half])));
          total = _mm512_fmadd_pd(total, down, product);
        }
        double* out = sums + i * GRAM_GROUP + 8 * half;
        const __m512d factor = row_factor * _mm512_loadu_pd(column_factors + 8 * half);
        _mm512_storeu_pd(out, _mm512_fmadd_pd(total, factor, _mm512_loadu_pd(out)));
      }
    }
  }

  const RowsView& rows_;
  const MaskView& mask_;
  const GramScratch& scratch_;
  Team& team_;
  int member_;
  int64_t count_ = 0;
  int64_t steps_ = 0;
};

template <class T, int S>
void run(const RowsView& rows, const MaskView& mask, const GramScratch& scratch, Team& team,
         int member, int64_t block_rows) {
  Block<T, S> block(rows, mask, scratch, team, member);
  for (int64_t first = 0; first < rows.n; first += block_rows) {
    block.run(first, rows.n - first < block_rows ? rows.n - first : block_rows);
  }
}

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

}  // namespace

void gram_member(const RowsView& rows, const MaskView& mask, const GramScratch& scratch, Team& team,
                 int member) {
  alignas(64) const TileConfig config;
  _tile_loadconfig(&config);
  if (rows.dtype == DType::f32) {
    run<float, GRAM_SINGLE.digits>(rows, mask, scratch, team, member, GRAM_SINGLE.rows);
  } else if (rows.dtype == DType::f16) {
    run<f16, GRAM_HALF.digits>(rows, mask, scratch, team, member, GRAM_HALF.rows);
  } else {
    run<bf16, GRAM_HALF.digits>(rows, mask, scratch, team, member, GRAM_HALF.rows);
  }
  _tile_release();
}

}  // namespace aniso::cpu::ANISO_ISA
