// Products of small matrices, float64 and stored by rows where nothing else is said, for kernels
// that are compiled once per instruction set. Rows start at multiples of a whole vector (`padded`)
// and are zero beyond their end; matrices have room for whole tiles of rows.
#pragma once

#include <type_traits>

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
template <class T>
constexpr int64_t TILE_WIDTH = TILE_VECTORS * LANES * 8 / static_cast<int64_t>(sizeof(T));
constexpr int64_t TILE_COLUMNS = TILE_WIDTH<double>;
constexpr int DOT_COLUMNS = 4;
// Columns of `dots` at a time, and rows of b: with a tile of a they stay in the first-level cache.
constexpr int64_t DOT_DEPTH = 256, DOT_BAND = 12;
// Rows of b in `multiply` at a time: a packed panel of 24 KiB stays in the first-level cache.
constexpr int64_t PANEL_DEPTH = 128;

/// Rows a matrix has room for: every kernel may read and write whole tiles.
constexpr int64_t padded_rows(int64_t rows) { return (rows + 23) / 24 * 24; }
constexpr int64_t padded(int64_t columns) { return (columns + 7) / 8 * 8; }

typedef uint64_t u64s __attribute__((vector_size(LANES * 8)));

template <class T>
using Vector = std::conditional_t<sizeof(T) == sizeof(double), f64s, f32s>;

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

/// An operand of `add_product`: float or double, one of its strides 1.
template <class T>
struct Operand {
  const T* data;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t column_stride = 1;

  Operand transposed() const { return {data, columns, rows, column_stride, row_stride}; }
};

/// out[i, :] (+ or −)= Σ_k a[i, k] panel[k, :] for one tile of ROWS rows. `stride` of a is that of
/// its rows or, where it is `turned`, of its columns.
template <class T, bool subtract, bool turned, int ROWS>
inline void multiply_tile(const T* a, int64_t stride, const T* panel, int64_t depth, T* out,
                          int64_t out_stride) {
  using V = Vector<T>;
  constexpr int64_t WIDTH = TILE_WIDTH<T> / TILE_VECTORS;
  V sums[ROWS][TILE_VECTORS] = {};
  for (int64_t k = 0; k < depth; ++k) {
    V y[TILE_VECTORS];
#pragma GCC unroll 8
    for (int c = 0; c < TILE_VECTORS; ++c) {
      y[c] = load_as<V>(panel + k * TILE_WIDTH<T> + c * WIDTH);
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const T x = turned ? a[k * stride + r] : a[r * stride + k];
#pragma GCC unroll 8
      for (int c = 0; c < TILE_VECTORS; ++c) sums[r][c] += x * y[c];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < TILE_VECTORS; ++c) {
      T* p = out + r * out_stride + c * WIDTH;
      const V old = load_as<V>(p);
      store(p, subtract ? old - sums[r][c] : old + sums[r][c]);
    }
  }
}

/// Lanes of a pair of vectors that change places halves of `half` lanes: those that row i takes,
/// and those that row i + half takes.
template <class I>
inline void exchange_lanes(int half, I& low, I& high) {
  constexpr int COUNT = sizeof(I) / sizeof(I{}[0]);
  for (int lane = 0; lane < COUNT; ++lane) {
    const bool upper = (lane & half) != 0;
    low[lane] = upper ? COUNT + lane - half : lane;
    high[lane] = upper ? COUNT + lane : lane + half;
  }
}

/// Transposes a square block in registers: its quarters change places, then theirs.
template <class T>
inline void transpose_block(Vector<T> (&rows)[LANES * 8 / sizeof(T)]) {
  using I = std::conditional_t<sizeof(T) == sizeof(double), u64s, u32s>;
  constexpr int COUNT = LANES * 8 / sizeof(T);
#pragma GCC unroll 4
  for (int half = COUNT / 2; half > 0; half /= 2) {
    I low{}, high{};
    exchange_lanes(half, low, high);
#pragma GCC unroll 16
    for (int i = 0; i < COUNT; ++i) {
      if ((i & half) != 0) continue;
      const Vector<T> a = rows[i], b = rows[i + half];
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + half] = __builtin_shuffle(a, b, high);
    }
  }
}

/// `depth` numbers of each of WIDTH rows of `from`, as columns of a panel.
template <class T>
inline void pack_transposed(const T* from, int64_t stride, int64_t depth, T* panel) {
  constexpr int COUNT = LANES * 8 / sizeof(T);
  int64_t k = 0;
  for (; k + COUNT <= depth; k += COUNT) {
    Vector<T> block[COUNT];
    for (int i = 0; i < COUNT; ++i) block[i] = load_as<Vector<T>>(from + i * stride + k);
    transpose_block<T>(block);
    for (int i = 0; i < COUNT; ++i) store(panel + (k + i) * TILE_WIDTH<T>, block[i]);
  }
  for (; k < depth; ++k) {
    for (int i = 0; i < COUNT; ++i) panel[k * TILE_WIDTH<T> + i] = from[i * stride + k];
  }
}

/// Rows first.. of b, of one tile of columns from j on, side by side; zero beyond its columns.
template <class T>
inline void pack_panel(const Operand<T>& b, int64_t first, int64_t depth, int64_t j, T* panel) {
  constexpr int64_t WIDTH = TILE_WIDTH<T> / TILE_VECTORS;
  for (int64_t c = 0; c < TILE_WIDTH<T>; c += WIDTH) {
    const T* from = b.data + first * b.row_stride + (j + c) * b.column_stride;
    const bool whole = j + c + WIDTH <= b.columns;
    if (b.column_stride == 1 && whole) {
      for (int64_t k = 0; k < depth; ++k) {
        store(panel + k * TILE_WIDTH<T> + c, load_as<Vector<T>>(from + k * b.row_stride));
      }
    } else if (b.row_stride == 1 && whole) {
      pack_transposed(from, b.column_stride, depth, panel + c);
    } else {
      for (int64_t i = 0; i < WIDTH; ++i) {
        const bool there = j + c + i < b.columns;
        for (int64_t k = 0; k < depth; ++k) {
          panel[k * TILE_WIDTH<T> + c + i] =
              there ? from[k * b.row_stride + i * b.column_stride] : T(0);
        }
      }
    }
  }
}

/// out (+ or −)= a b, with scratch for one panel: PANEL_DEPTH · TILE_WIDTH. Rows of out must have
/// room for whole tiles.
template <bool subtract, bool turned, class T>
inline void add_product_of(const Operand<T>& a, const Operand<T>& b, T* out, int64_t out_stride,
                           T* panel) {
  const int64_t stride = turned ? a.column_stride : a.row_stride, step = turned ? 1 : stride;
  for (int64_t first = 0; first < b.rows; first += PANEL_DEPTH) {
    const int64_t depth = first + PANEL_DEPTH < b.rows ? PANEL_DEPTH : b.rows - first;
    const T* left = a.data + (turned ? first * stride : first);
    for (int64_t j = 0; j < b.columns; j += TILE_WIDTH<T>) {
      pack_panel(b, first, depth, j, panel);
      int64_t i = 0;
      for (; i + TILE_ROWS <= a.rows; i += TILE_ROWS) {
        multiply_tile<T, subtract, turned, TILE_ROWS>(left + i * step, stride, panel, depth,
                                                      out + i * out_stride + j, out_stride);
      }
      for (; i < a.rows; ++i) {
        multiply_tile<T, subtract, turned, 1>(left + i * step, stride, panel, depth,
                                              out + i * out_stride + j, out_stride);
      }
    }
  }
}

template <class T>
inline void add_product(const Operand<T>& a, const Operand<T>& b, T* out, int64_t out_stride,
                        T* panel) {
  if (a.column_stride == 1) {
    add_product_of<false, false>(a, b, out, out_stride, panel);
  } else {
    add_product_of<false, true>(a, b, out, out_stride, panel);
  }
}

/// The same of matrices by rows.
template <bool subtract = false>
inline void multiply(const Matrix& a, const Matrix& b, const Matrix& out, double* panel) {
  const Operand<double> left{a.data, a.rows, a.columns, a.stride};
  const Operand<double> right{b.data, b.rows, b.columns, b.stride};
  add_product_of<subtract, false>(left, right, out.data, out.stride, panel);
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
