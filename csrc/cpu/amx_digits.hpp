// Fixed-point digits of rows and their products on the matrix unit (AMX): shared by the kernels
// that are compiled for it, each in a translation unit of its own.
#pragma once

#include <immintrin.h>

#include "cpu/row_scale.hpp"
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

/// 16 words that look random, the same ones for every k. Roundings up or down by them do not add
/// up, whatever numbers come again and again.
inline __m512i random_words(int64_t k) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i at = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(k)));
  at = _mm512_mullo_epi32(at, _mm512_set1_epi32(0x1b873593));
  at = _mm512_xor_si512(at, _mm512_srli_epi32(at, 15));
  at = _mm512_mullo_epi32(at, _mm512_set1_epi32(0x2c1b3c6d));
  return _mm512_xor_si512(at, _mm512_srli_epi32(at, 13));
}

// Exact sums of a tile by weight, the last one lightest: digits i and j have weight i + j. Three
// digits of half-precision numbers are often round: there the weight beyond the last digit counts
// too, as it does not average out.
template <int S>
constexpr int WEIGHTS = S == 3 ? 4 : S;
template <int S>
using TileSums = int32_t[WEIGHTS<S>][256];

/// What comes after a tile operation, unless a local `gap` hides it and does other work instead.
/// Six operations are issued in a cycle; where another thread runs on the same core, tile
/// operations issued in one cycle take half as long again (measured: products, loads and both, on
/// Sapphire Rapids; alone on the core they take no longer for the gap).
inline __attribute__((always_inline)) void gap() { __asm__ volatile(".rept 8\n\tnop\n\t.endr"); }

#define TILE_OPERATION(...) \
  do {                      \
    __VA_ARGS__;            \
    gap();                  \
  } while (false)
#define LOAD_FROM(tile, at) TILE_OPERATION(_tile_loadd(tile, at, 64))
#define LOAD(tile, panel, digit) LOAD_FROM(tile, panel + (digit) * TILE_BYTES)
// A tile that is not needed again soon, and does not drive what is out of the first-level cache.
#define STREAM_FROM(tile, at) TILE_OPERATION(_tile_stream_loadd(tile, at, 64))
#define STREAM(tile, panel, digit) STREAM_FROM(tile, panel + (digit) * TILE_BYTES)
#define MULTIPLY(sum, a, b) TILE_OPERATION(_tile_dpbssd(sum, a, b))
#define MULTIPLY_BF16(sum, a, b) TILE_OPERATION(_tile_dpbf16ps(sum, a, b))

/// How many tile operations a step of the products of S digits is. It must be right: counts and
/// promotions are spread over so many.
template <int S, bool LAST = true>
constexpr int OPERATIONS = S == 5 ? 27
                           : LAST ? 14
                                  : 12;

/// The products of one step of five digits, in tiles 0 to 4 by weight. Tiles of a stay in the
/// first-level cache, those of b pass by. between(k) comes after the k-th tile operation. Of all
/// orders with three tiles for digits none loads fewer than 12.
template <class Between>
inline __attribute__((always_inline)) void add_step_of_five(const int8_t* a, const int8_t* b,
                                                            Between between) {
  int operation = 0;
  const auto gap = [&]() __attribute__((always_inline)) { between(operation++); };
  LOAD(6, a, 0);
  STREAM(7, b, 3);
  MULTIPLY(3, 6, 7);
  LOAD(5, a, 1);
  MULTIPLY(4, 5, 7);
  STREAM(7, b, 1);
  MULTIPLY(2, 5, 7);
  LOAD(5, a, 2);
  MULTIPLY(3, 5, 7);
  LOAD(5, a, 3);
  MULTIPLY(4, 5, 7);
  MULTIPLY(1, 6, 7);
  STREAM(7, b, 0);
  MULTIPLY(3, 5, 7);
  STREAM(5, b, 4);
  MULTIPLY(4, 6, 5);
  MULTIPLY(0, 6, 7);
  STREAM(5, b, 2);
  MULTIPLY(2, 6, 5);
  LOAD(6, a, 4);
  MULTIPLY(4, 6, 7);
  LOAD(6, a, 1);
  MULTIPLY(3, 6, 5);
  MULTIPLY(1, 6, 7);
  LOAD(6, a, 2);
  MULTIPLY(4, 6, 5);
  MULTIPLY(2, 6, 7);
}

/// The same of three digits, in tiles 0 to 3; without LAST the products of weight 3 are left out.
/// No product comes right after the load of one of its tiles: where another thread runs on the same
/// core, little more than one or two tile operations are on their way at a time (measured: a step
/// takes as long as its loads and its products alone together, 8 % more where products wait).
template <bool LAST, class Between>
inline __attribute__((always_inline)) void add_step_of_three(const int8_t* a, const int8_t* b,
                                                             Between between) {
  int operation = 0;
  const auto gap = [&]() __attribute__((always_inline)) { between(operation++); };
  LOAD(7, a, 1);
  STREAM(6, b, 1);
  STREAM(5, b, 0);
  if constexpr (LAST) {
    LOAD(4, a, 2);
    MULTIPLY(2, 7, 6);
    MULTIPLY(3, 4, 6);
    MULTIPLY(2, 4, 5);
    LOAD(4, a, 0);
    MULTIPLY(1, 7, 5);
    MULTIPLY(0, 4, 5);
    STREAM(5, b, 2);
    MULTIPLY(1, 4, 6);
    MULTIPLY(2, 4, 5);
    MULTIPLY(3, 7, 5);
  } else {
    MULTIPLY(2, 7, 6);
    LOAD(4, a, 2);
    MULTIPLY(1, 7, 5);
    LOAD(7, a, 0);
    MULTIPLY(2, 4, 5);
    STREAM(4, b, 2);
    MULTIPLY(0, 7, 5);
    MULTIPLY(1, 7, 6);
    MULTIPLY(2, 7, 4);
  }
}

/// Sums the products of the digits of two panels over all steps; between(k) comes after the k-th
/// tile operation of a step.
template <int S, class Between>
inline __attribute__((always_inline)) void add_products(const int8_t* a, const int8_t* b,
                                                        int64_t steps, TileSums<S>& sums,
                                                        Between between) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if constexpr (S == 5) _tile_zero(4);
  for (int64_t step = 0; step < steps; ++step) {
    if constexpr (S == 5) {
      add_step_of_five(a, b, between);
    } else {
      add_step_of_three<true>(a, b, between);
    }
    a += S * TILE_BYTES;
    b += S * TILE_BYTES;
  }
  _tile_stored(0, sums[0], 64);
  _tile_stored(1, sums[1], 64);
  _tile_stored(2, sums[2], 64);
  _tile_stored(3, sums[3], 64);
  if constexpr (S == 5) _tile_stored(4, sums[4], 64);
}

/// The direction of a row in float32: see RowScale. row is null when a value is not finite.
/// Squares of float32 and half-precision values are exact in float64 and never leave its range.
template <class T>
RowScale direction_of(const T* row, int64_t d) {
  __m512d acc[4] = {_mm512_setzero_pd(), _mm512_setzero_pd(), _mm512_setzero_pd(),
                    _mm512_setzero_pd()};
  const auto add = [&](__m512 x, int at) {
    const __m512d low = low_as_f64(x), high = high_as_f64(x);
    acc[at] = _mm512_fmadd_pd(low, low, acc[at]);
    acc[at + 1] = _mm512_fmadd_pd(high, high, acc[at + 1]);
  };
  int64_t k = 0;
  for (; k + 32 <= d; k += 32) {
    add(load16(row + k, 0xffff), 0);
    add(load16(row + k + 16, 0xffff), 2);
  }
  for (; k < d; k += 16) add(load16(row + k, columns_from(k, d)), 0);
  const double squares = sum_lanes((acc[0] + acc[1]) + (acc[2] + acc[3]));
  if (!(squares <= __DBL_MAX__)) return {nullptr, 0, 0, 0};
  if (squares == 0.0) return {row, 0, 0, 0};
  const double norm = __builtin_sqrt(squares);
  const int exponent = -__builtin_ilogb(norm);
  const double inverse = 1.0 / __builtin_scalbn(norm, exponent);
  const float high = static_cast<float>(inverse);
  return {row, static_cast<float>(exponent), high, static_cast<float>(inverse - high)};
}

/// Memory that is to come into the second-level cache while other work goes on.
class Prefetch {
 public:
  Prefetch(const int8_t* begin, int64_t bytes) : at_(begin), end_(begin + bytes) {}
  void lines(int64_t count) {
    for (; count > 0 && at_ < end_; --count, at_ += 64) _mm_prefetch(at_, _MM_HINT_T1);
  }

 private:
  const int8_t *at_, *end_;
};

/// 16 × 16 words.
inline void transpose(const int8_t* in, int8_t* out) {
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

struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

/// The tile registers of this thread, for as long as it lives.
class TileSession {
 public:
  TileSession() {
    // Static: GCC's intrinsic names 8 bytes of it as read, and stores of the others may go.
    alignas(64) static constexpr TileConfig config;
    _tile_loadconfig(&config);
  }
  ~TileSession() { _tile_release(); }
  TileSession(const TileSession&) = delete;
};

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
