// Products of small float64 matrices, all stored by rows, for kernels that are compiled once per
// instruction set. Rows start at multiples of a whole vector (`padded`) and are zero beyond their
// end; matrices have room for whole tiles of rows.
#pragma once

#include "cpu/simd.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

// The tile of `dots`: as many sums as the registers hold beside their operands, four side by side.
#if defined(__AVX512F__)
constexpr int DOT_ROWS = 6;
#else
constexpr int DOT_ROWS = 2;
#endif
// The tile of `multiply`.
#if defined(__AVX512F__)
constexpr int TILE_ROWS = 8, TILE_VECTORS = 3;
#else
constexpr int TILE_ROWS = 4, TILE_VECTORS = 2;
#endif
constexpr int64_t TILE_COLUMNS = TILE_VECTORS * LANES;
constexpr int DOT_COLUMNS = 4;
// Columns of `dots` at a time, and rows of b: with a tile of a they stay in the first-level cache.
constexpr int64_t DOT_DEPTH = 256, DOT_BAND = 12;
// Rows of b in `multiply` at a time: a packed panel of 24 KiB stays in the first-level cache.
constexpr int64_t PANEL_DEPTH = 128;

/// Rows a matrix has room for: every kernel may read and write whole tiles.
constexpr int64_t padded_rows(int64_t rows) { return (rows + 23) / 24 * 24; }
constexpr int64_t padded(int64_t columns) { return (columns + 7) / 8 * 8; }

/// A matrix by rows.
struct Matrix {
  double* data;
  int64_t rows;
  int64_t columns;
  int64_t stride;

  double* row(int64_t i) const { return data + i * stride; }
  Matrix from_row(int64_t first, int64_t count) const {
    return {row(first), count, columns, stride};
  }
};

/// out[0..3] += the sums of the lanes of four vectors.
inline void add_sums(const f64s (&v)[4], double* out) {
#if defined(__AVX512F__)
  const __m512d ab = _mm512_unpacklo_pd(v[0], v[1]) + _mm512_unpackhi_pd(v[0], v[1]);
  const __m512d cd = _mm512_unpacklo_pd(v[2], v[3]) + _mm512_unpackhi_pd(v[2], v[3]);
  const __m256d low = _mm512_castpd512_pd256(ab) + _mm512_extractf64x4_pd(ab, 1);
  const __m256d high = _mm512_castpd512_pd256(cd) + _mm512_extractf64x4_pd(cd, 1);
  const __m256d sums =
      _mm256_permute2f128_pd(low, high, 0x20) + _mm256_permute2f128_pd(low, high, 0x31);
  _mm256_storeu_pd(out, _mm256_loadu_pd(out) + sums);
#else
  for (int i = 0; i < 4; ++i) out[i] += sum_lanes(v[i]);
#endif
}

/// out[i, j] += Σ_k a[i, k] b[j, k] for one tile, k over [begin, end).
inline void dot_tile(const Matrix& a, const Matrix& b, int64_t i, int64_t j, int64_t begin,
                     int64_t end, const Matrix& out) {
  f64s sums[DOT_ROWS][DOT_COLUMNS] = {};
  const double *left = a.row(i), *right = b.row(j);
  for (int64_t k = begin; k < end; k += LANES) {
    f64s y[DOT_COLUMNS];
#pragma GCC unroll 8
    for (int c = 0; c < DOT_COLUMNS; ++c) y[c] = load<f64s>(right + c * b.stride + k);
#pragma GCC unroll 8
    for (int r = 0; r < DOT_ROWS; ++r) {
      const f64s x = load<f64s>(left + r * a.stride + k);
#pragma GCC unroll 8
      for (int c = 0; c < DOT_COLUMNS; ++c) sums[r][c] += x * y[c];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < DOT_ROWS; ++r) add_sums(sums[r], out.row(i + r) + j);
}

inline void clear(const Matrix& m) {
  for (int64_t i = 0; i < m.rows; ++i) {
    for (int64_t k = 0; k < m.stride; ++k) m.row(i)[k] = 0.0;
  }
}

/// out = a bᵀ; `lower`: only tiles that reach the diagonal or below it. out must have room for
/// whole tiles in both directions.
inline void dots(const Matrix& a, const Matrix& b, const Matrix& out, bool lower) {
  for (int64_t i = 0; i < padded_rows(a.rows); ++i) {
    for (int64_t j = 0; j < out.stride; ++j) out.row(i)[j] = 0.0;
  }
  const int64_t columns = padded(a.columns);
  for (int64_t begin = 0; begin < columns; begin += DOT_DEPTH) {
    const int64_t end = begin + DOT_DEPTH < columns ? begin + DOT_DEPTH : columns;
    for (int64_t band = 0; band < b.rows; band += DOT_BAND) {
      for (int64_t i = lower ? band / DOT_ROWS * DOT_ROWS : 0; i < a.rows; i += DOT_ROWS) {
        int64_t last = band + DOT_BAND < b.rows ? band + DOT_BAND : b.rows;
        if (lower && i + DOT_ROWS < last) last = i + DOT_ROWS;
        for (int64_t j = band; j < last; j += DOT_COLUMNS) dot_tile(a, b, i, j, begin, end, out);
      }
    }
  }
}

/// out[i, :] (+ or −)= Σ_k a[i, k] panel[k, :] for one tile of ROWS rows.
template <bool subtract, int ROWS>
inline void multiply_tile(const double* a, int64_t stride, const double* panel, int64_t depth,
                          double* out, int64_t out_stride) {
  f64s sums[ROWS][TILE_VECTORS] = {};
  for (int64_t k = 0; k < depth; ++k) {
    f64s y[TILE_VECTORS];
#pragma GCC unroll 8
    for (int c = 0; c < TILE_VECTORS; ++c) {
      y[c] = load<f64s>(panel + k * TILE_COLUMNS + c * LANES);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const double x = a[r * stride + k];
#pragma GCC unroll 8
      for (int c = 0; c < TILE_VECTORS; ++c) sums[r][c] += x * y[c];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < TILE_VECTORS; ++c) {
      double* p = out + r * out_stride + c * LANES;
      const f64s old = load<f64s>(p);
      store(p, subtract ? old - sums[r][c] : old + sums[r][c]);
    }
  }
}

/// out (+ or −)= a b, with scratch for one panel: PANEL_DEPTH · TILE_COLUMNS. Rows of out must have
/// room for whole tiles (`tile_stride`).
template <bool subtract = false>
inline void multiply(const Matrix& a, const Matrix& b, const Matrix& out, double* panel) {
  for (int64_t first = 0; first < b.rows; first += PANEL_DEPTH) {
    const int64_t depth = first + PANEL_DEPTH < b.rows ? PANEL_DEPTH : b.rows - first;
    for (int64_t j = 0; j < b.columns; j += TILE_COLUMNS) {
      for (int64_t k = 0; k < depth; ++k) {
#pragma GCC unroll 8
        for (int c = 0; c < TILE_VECTORS; ++c) {
          store(panel + k * TILE_COLUMNS + c * LANES, load<f64s>(b.row(first + k) + j + c * LANES));
        }
      }
      int64_t i = 0;
      for (; i + TILE_ROWS <= a.rows; i += TILE_ROWS) {
        multiply_tile<subtract, TILE_ROWS>(a.row(i) + first, a.stride, panel, depth, out.row(i) + j,
                                           out.stride);
      }
      for (; i < a.rows; ++i) {
        multiply_tile<subtract, 1>(a.row(i) + first, a.stride, panel, depth, out.row(i) + j,
                                   out.stride);
      }
    }
  }
}

/// The stride of rows of n columns that have room for whole tiles of `multiply`, and do not all
/// start in one set of the cache.
constexpr int64_t tile_stride(int64_t columns) {
  const int64_t stride = (columns + 23) / 24 * 24;
  return stride % 128 == 0 ? stride + 8 : stride;
}

inline double dot(const double* a, const double* b, int64_t n) {
  f64s sums[4] = {};
  int64_t k = 0;
  for (; k + 4 * LANES <= n; k += 4 * LANES) {
#pragma GCC unroll 4
    for (int u = 0; u < 4; ++u) {
      sums[u] += load<f64s>(a + k + u * LANES) * load<f64s>(b + k + u * LANES);
    }
  }
  for (; k < n; k += LANES) sums[0] += load<f64s>(a + k) * load<f64s>(b + k);
  return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/// a += factor · b
inline void add_scaled(double* a, const double* b, double factor, int64_t n) {
  for (int64_t k = 0; k < n; k += LANES) {
    store(a + k, load<f64s>(a + k) + factor * load<f64s>(b + k));
  }
}

inline void scale(double* a, double factor, int64_t n) {
  for (int64_t k = 0; k < n; k += LANES) store(a + k, factor * load<f64s>(a + k));
}

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
