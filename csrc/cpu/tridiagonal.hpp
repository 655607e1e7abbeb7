// Eigenvalues and eigenvectors of small symmetric float64 matrices: Householder reduction to
// tridiagonal form, values by sign counts, vectors by twisted factorisation, and implicit QL
// rotations where vectors must be orthogonal whatever the spectrum.
#pragma once

#include "cpu/dense.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

constexpr double EPSILON = 0x1p-52;

// Rows of the reduction's pass: their coefficients and sums stay in registers.
#if defined(__AVX512F__)
constexpr int PASS_ROWS = 4;
#else
constexpr int PASS_ROWS = 2;
#endif

/// A symmetric tridiagonal matrix of order n.
struct Tridiagonal {
  double* d;  // [n] diagonal
  double* e;  // [n] e[i] beside d[i] and d[i + 1]; e[n - 1] = 0
  int64_t n;
};

/// One pass over the leading r rows of the symmetric matrix a (lower triangle, diagonal blocks of
/// LANES columns whole): a -= v wᵀ + w vᵀ, and y = a x for the result. v, w, x, y have whole
/// blocks; x is zero from r on.
inline void update_and_multiply(const Matrix& a, int64_t r, const double* v, const double* w,
                                const double* x, double* y) {
  for (int64_t k = 0; k < padded(r); ++k) y[k] = 0.0;
  for (int64_t i = 0; i < r; i += PASS_ROWS) {
    f64s vi[PASS_ROWS], wi[PASS_ROWS], xi[PASS_ROWS], sums[PASS_ROWS] = {};
    for (int p = 0; p < PASS_ROWS; ++p) {
      vi[p] = f64s{} + v[i + p];
      wi[p] = f64s{} + w[i + p];
      xi[p] = f64s{} + x[i + p];
    }
    double* row = a.row(i);
    const int64_t diagonal = i / LANES * LANES;
    for (int64_t j = 0; j <= diagonal; j += LANES) {
      const f64s vj = load<f64s>(v + j), wj = load<f64s>(w + j), xj = load<f64s>(x + j);
      f64s across = {};
#pragma GCC unroll 8
      for (int p = 0; p < PASS_ROWS; ++p) {
        double* at = row + p * a.stride + j;
        f64s entry = load<f64s>(at);
        entry -= vi[p] * wj;
        entry -= wi[p] * vj;
        store(at, entry);
        sums[p] += entry * xj;
        across += entry * xi[p];
      }
      if (j < diagonal) store(y + j, load<f64s>(y + j) + across);
    }
    f64s padded_sums[4] = {};
    for (int p = 0; p < PASS_ROWS; ++p) padded_sums[p] = sums[p];
    add_sums(padded_sums, y + i);
  }
  for (int64_t k = r; k < padded(r); ++k) y[k] = 0.0;
}

/// Reduces the symmetric matrix a (overwritten) to t = Qᵀ a Q, last row first. The reflectors are
/// I - tau[r] x xᵀ with x = row r of `reflectors`, of length r and x[r - 1] = 1. scratch: three
/// rows of a.stride.
inline void tridiagonalize(const Matrix& a, const Tridiagonal& t, const Matrix& reflectors,
                           double* tau, double* scratch) {
  const int64_t n = a.rows, stride = a.stride;
  double *w = scratch, *y = scratch + stride, *none = scratch + 2 * stride;
  for (int64_t k = 0; k < stride; ++k) w[k] = y[k] = none[k] = 0.0;
  const double* v = none;
  t.e[n - 1] = 0.0;
  for (int64_t r = n - 1; r >= 1; --r) {
    double* row = a.row(r);
    for (int64_t j = 0; j < padded(r + 1); j += LANES) {
      store(row + j, load<f64s>(row + j) - v[r] * load<f64s>(w + j) - w[r] * load<f64s>(v + j));
    }
    t.d[r] = row[r];
    double* x = reflectors.row(r);
    for (int64_t j = 0; j < stride; ++j) x[j] = j < r ? row[j] : 0.0;
    const double alpha = x[r - 1];
    x[r - 1] = 0.0;
    const double rest = dot(x, x, padded(r));
    if (rest == 0.0) {
      t.e[r - 1] = alpha;
      tau[r] = 0.0;
    } else {
      const double length = __builtin_sqrt(alpha * alpha + rest);
      const double beta = alpha > 0.0 ? -length : length;
      t.e[r - 1] = beta;
      tau[r] = (beta - alpha) / beta;
      scale(x, 1.0 / (alpha - beta), padded(r));
      x[r - 1] = 1.0;
    }
    update_and_multiply(a, r, v, w, x, y);
    const double half = 0.5 * tau[r] * tau[r] * dot(x, y, padded(r));
    for (int64_t j = 0; j < padded(r); j += LANES) {
      store(w + j, tau[r] * load<f64s>(y + j) - half * load<f64s>(x + j));
    }
    for (int64_t j = padded(r); j < stride; ++j) w[j] = 0.0;
    v = x;
  }
  t.d[0] = a.row(0)[0] - 2.0 * v[0] * w[0];
}

/// Sets e to zero where it is below the rounding of the whole; returns the largest sum of a row.
inline double split(const Tridiagonal& t) {
  double norm = 0.0;
  for (int64_t i = 0; i < t.n; ++i) {
    const double left = i > 0 ? __builtin_fabs(t.e[i - 1]) : 0.0;
    norm = max_of(norm, __builtin_fabs(t.d[i]) + __builtin_fabs(t.e[i]) + left);
  }
  for (int64_t i = 0; i < t.n; ++i) {
    if (__builtin_fabs(t.e[i]) <= 0.25 * EPSILON * norm) t.e[i] = 0.0;
  }
  return norm;
}

constexpr int CHAINS = 4;
constexpr int64_t SHIFTS = CHAINS * LANES;

/// What is known of the characteristic polynomial at SHIFTS points: the eigenvalues below, and the
/// value as mantissa · 2^exponent (exponents of one matrix differ by the same constant).
struct Evaluations {
  double shifts[SHIFTS], counts[SHIFTS], mantissas[SHIFTS], exponents[SHIFTS];
};

/// Evaluates the unreduced block d, e² (entries up to 1) at the shifts, by the leading minors
/// p_i = (d_i - s) p_{i-1} - e²_{i-1} p_{i-2}, which a common power of two keeps in range; their
/// sign changes count the eigenvalues below s of a matrix within 4 ε of this one.
inline void evaluate(const double* d, const double* squares, int64_t n, Evaluations& out) {
  f64s shift[CHAINS], now[CHAINS], before[CHAINS];
  u64s changes[CHAINS] = {}, exponents[CHAINS] = {};
  for (int c = 0; c < CHAINS; ++c) {
    shift[c] = load<f64s>(out.shifts + c * LANES);
    before[c] = f64s{} + 1.0;
    now[c] = d[0] - shift[c];
    changes[c] = load_as<u64s>(&now[c]) >> 63;
  }
  for (int64_t i = 1; i < n;) {
    const int64_t end = i + 8 < n ? i + 8 : n;
    for (; i < end; ++i) {
#pragma GCC unroll 8
      for (int c = 0; c < CHAINS; ++c) {
        const f64s next = (d[i] - shift[c]) * now[c] - squares[i - 1] * before[c];
        changes[c] += (load_as<u64s>(&next) ^ load_as<u64s>(&now[c])) >> 63;
        before[c] = now[c];
        now[c] = next;
      }
    }
    for (int c = 0; c < CHAINS; ++c) {
      constexpr uint64_t EXPONENT = 0x7ff0000000000000u;
      const u64s a = load_as<u64s>(&now[c]) & EXPONENT, b = load_as<u64s>(&before[c]) & EXPONENT;
      const u64s most = a > b ? a : b, factor = 0x7fd0000000000000u - most;
      const f64s down = load_as<f64s>(&factor);
      now[c] *= down;
      before[c] *= down;
      exponents[c] += most >> 52;
    }
  }
  for (int c = 0; c < CHAINS; ++c) {
    store(out.mantissas + c * LANES, now[c]);
    for (int lane = 0; lane < LANES; ++lane) {
      out.counts[c * LANES + lane] = static_cast<double>(changes[c][lane]);
      out.exponents[c * LANES + lane] = static_cast<double>(exponents[c][lane]);
    }
  }
}

/// One end of an interval around an eigenvalue; exponent is NaN where nothing was evaluated.
struct End {
  double at, count, mantissa, exponent;
};

/// An eigenvalue on its way: `index` of them lie below. `reach` is the width the interval must have
/// shrunk to by now, were it halved each time, and a little more.
struct Bracket {
  End low, high;
  double index, reach;
};

/// The next point to evaluate: the middle, until the interval holds one eigenvalue alone; then near
/// the secant's zero, but never so far from the middle that halving would have been faster (the
/// ITP method, Oliveira & Takahashi 2020).
inline double next_point(const Bracket& b) {
  const double width = b.high.at - b.low.at, middle = 0.5 * (b.low.at + b.high.at);
  const double shift = b.high.exponent - b.low.exponent;
  if (b.high.count - b.low.count != 1.0 || !(shift == shift)) return middle;
  const double clamped = shift > 200.0 ? 200.0 : shift < -200.0 ? -200.0 : shift;
  const uint64_t bits = static_cast<uint64_t>(static_cast<int64_t>(clamped) + 1023) << 52;
  const double ratio =
      __builtin_fabs(b.high.mantissa) / __builtin_fabs(b.low.mantissa) * load_as<double>(&bits);
  const double zero = b.low.at + width / (1.0 + ratio);
  const double towards = middle > zero ? 1.0 : -1.0, off = __builtin_fabs(middle - zero);
  // The overshoot makes both ends close in.
  const double step = max_of(0.2 * width * width / b.reach, 0x1p-53);
  const double free = max_of(b.reach - 0.5 * width, 0.0);
  const double point = step < off ? zero + towards * step : middle;
  return __builtin_fabs(point - middle) <= free ? point : middle - towards * free;
}

/// Scratch of `find_eigenvalues` for up to n of them.
struct SearchScratch {
  double *d, *squares;
  Bracket* brackets;
  int64_t* active;
};

/// The eigenvalues of index first..first + count - 1 (ascending) of one unreduced block, each the
/// middle of an interval narrower than 2 ε times the largest.
inline void find_eigenvalues(const double* d, const double* e, int64_t n, int64_t first,
                             int64_t count, double* values, const SearchScratch& s) {
  if (n == 1) {
    values[0] = d[0];
    return;
  }
  double bottom = d[0], top = d[0];
  for (int64_t i = 0; i < n; ++i) {
    const double radius =
        (i > 0 ? __builtin_fabs(e[i - 1]) : 0.0) + (i + 1 < n ? __builtin_fabs(e[i]) : 0.0);
    bottom = d[i] - radius < bottom ? d[i] - radius : bottom;
    top = max_of(top, d[i] + radius);
  }
  const double norm = max_of(__builtin_fabs(bottom), __builtin_fabs(top));
  // A power of two, so that nothing is rounded.
  const double down = __builtin_scalbn(1.0, -__builtin_ilogb(norm) - 1);
  for (int64_t i = 0; i < n; ++i) {
    s.d[i] = d[i] * down;
    const double next = i + 1 < n ? e[i] * down : 0.0;
    s.squares[i] = max_of(next * next, 0x1p-130);
  }
  const double unknown = __builtin_nan("");
  const End below{bottom * down - 0x1p-50, 0.0, 0.0, unknown};
  const End above{top * down + 0x1p-50, static_cast<double>(n), 0.0, unknown};
  for (int64_t j = 0; j < count; ++j) {
    s.brackets[j] = {below, above, static_cast<double>(first + j), 0.0};
  }
  Evaluations points;
  // An even grid first: it narrows every interval by as many times as there are eigenvalues.
  const int64_t grid = (count + SHIFTS - 1) / SHIFTS * SHIFTS;
  const double step = (above.at - below.at) / static_cast<double>(grid + 1);
  End before = below;
  int64_t lowest = 0;
  for (int64_t j = 0; j < grid; j += SHIFTS) {
    for (int64_t k = 0; k < SHIFTS; ++k) {
      points.shifts[k] = below.at + static_cast<double>(j + k + 1) * step;
    }
    evaluate(s.d, s.squares, n, points);
    for (int64_t k = 0; k < SHIFTS; ++k) {
      const End end{points.shifts[k], points.counts[k], points.mantissas[k], points.exponents[k]};
      // Points come in ascending order: an interval ends at the first that exceeds its index.
      for (; lowest < count && s.brackets[lowest].index < end.count; ++lowest) {
        s.brackets[lowest].low = before;
        s.brackets[lowest].high = end;
      }
      before = end;
    }
  }
  for (; lowest < count; ++lowest) s.brackets[lowest].low = before;
  int64_t left = 0;
  for (int64_t j = 0; j < count; ++j) {
    s.brackets[j].reach = s.brackets[j].high.at - s.brackets[j].low.at;
    s.active[left++] = j;
  }
  while (left > 0) {
    for (int64_t begin = 0; begin < left; begin += SHIFTS) {
      const int64_t filled = left - begin < SHIFTS ? left - begin : SHIFTS;
      for (int64_t k = 0; k < SHIFTS; ++k) {
        points.shifts[k] = next_point(s.brackets[s.active[begin + (k < filled ? k : 0)]]);
      }
      evaluate(s.d, s.squares, n, points);
      for (int64_t k = 0; k < filled; ++k) {
        Bracket& b = s.brackets[s.active[begin + k]];
        const End end{points.shifts[k], points.counts[k], points.mantissas[k], points.exponents[k]};
        (end.count <= b.index ? b.low : b.high) = end;
        b.reach *= 0.5;
      }
    }
    int64_t kept = 0;
    for (int64_t k = 0; k < left; ++k) {
      const Bracket& b = s.brackets[s.active[k]];
      if (b.high.at - b.low.at > 0x1p-52) s.active[kept++] = s.active[k];
    }
    left = kept;
  }
  const double up = 1.0 / down;
  for (int64_t j = 0; j < count; ++j) {
    values[j] = 0.5 * (s.brackets[j].low.at + s.brackets[j].high.at) * up;
  }
}

/// Scratch of `twist`: [n] vectors each.
struct TwistScratch {
  f64s *above, *below, *pivots;
};

inline f64s away_from_zero(f64s x, double tiny) {
  const f64s size = x < 0.0 ? -x : x;
  return size < tiny ? f64s{} + tiny : x;
}

/// Eigenvectors of LANES eigenvalues of one unreduced block, unit length, as lanes of z [n]: from
/// T - λ = L D Lᵀ from above and U D Uᵀ from below, joined where the remaining pivot is least
/// (Parlett & Dhillon 1997). Accurate to ε‖T‖ over the gap to the next eigenvalue; `norm` is ‖T‖.
inline void twist(const double* d, const double* e, int64_t n, double norm, f64s values, f64s* z,
                  const TwistScratch& s) {
  const double tiny = 0x1p-200 * norm;
  f64s pivot = away_from_zero(d[0] - values, tiny);
  for (int64_t i = 0; i < n; ++i) {
    s.pivots[i] = pivot;
    if (i + 1 == n) break;
    s.above[i] = e[i] / pivot;
    pivot = away_from_zero((d[i + 1] - values) - e[i] * s.above[i], tiny);
  }
  pivot = away_from_zero(d[n - 1] - values, tiny);
  f64s least = s.pivots[n - 1] < 0.0 ? -s.pivots[n - 1] : s.pivots[n - 1];
  f64s where = f64s{} + static_cast<double>(n - 1);
  for (int64_t i = n - 2; i >= 0; --i) {
    s.below[i] = e[i] / pivot;
    pivot = away_from_zero((d[i] - values) - e[i] * s.below[i], tiny);
    f64s rest = s.pivots[i] + pivot - (d[i] - values);
    rest = rest < 0.0 ? -rest : rest;
    where = rest < least ? f64s{} + static_cast<double>(i) : where;
    least = rest < least ? rest : least;
  }
  f64s entry = {}, squares = {};
  for (int64_t i = n - 1; i >= 0; --i) {
    const f64s here = f64s{} + static_cast<double>(i);
    entry = i + 1 < n ? -s.above[i] * entry : entry;
    entry = here == where ? f64s{} + 1.0 : here < where ? entry : f64s{};
    z[i] = entry;
  }
  entry = f64s{};
  for (int64_t i = 0; i < n; ++i) {
    const f64s here = f64s{} + static_cast<double>(i);
    entry = i > 0 ? -s.below[i - 1] * entry : entry;
    entry = here > where ? entry : here == where ? f64s{} + 1.0 : f64s{};
    z[i] = here > where ? entry : z[i];
    squares += z[i] * z[i];
  }
  for (int lane = 0; lane < LANES; ++lane) squares[lane] = 1.0 / __builtin_sqrt(squares[lane]);
  for (int64_t i = 0; i < n; ++i) z[i] *= squares;
}

/// Eigenvalues of t, all of them, into t.d, and eigenvectors as rows of z, by implicit QL rotations
/// (Wilkinson & Reinsch 1971): orthogonal to rounding whatever the spectrum. z starts as the
/// identity, or as rows to be rotated. `norm` bounds the eigenvalues. False where it does not
/// converge.
inline bool rotate_ql(const Tridiagonal& t, const Matrix& z, double norm) {
  const int64_t columns = padded(z.columns);
  const double negligible = 0.25 * EPSILON * norm;
  for (int64_t first = 0; first < t.n; ++first) {
    for (int turn = 0;; ++turn) {
      int64_t last = first;
      for (; last + 1 < t.n; ++last) {
        if (__builtin_fabs(t.e[last]) <= negligible) break;
      }
      if (last == first) break;
      if (turn == 100) return false;
      double g = (t.d[first + 1] - t.d[first]) / (2.0 * t.e[first]);
      double r = __builtin_hypot(g, 1.0);
      g = t.d[last] - t.d[first] + t.e[first] / (g + __builtin_copysign(r, g));
      double sine = 1.0, cosine = 1.0, carried = 0.0;
      int64_t i = last - 1;
      for (; i >= first; --i) {
        const double f = sine * t.e[i], b = cosine * t.e[i];
        r = __builtin_sqrt(f * f + g * g);
        t.e[i + 1] = r;
        if (r == 0.0) {
          t.d[i + 1] -= carried;
          t.e[last] = 0.0;
          break;
        }
        sine = f / r;
        cosine = g / r;
        g = t.d[i + 1] - carried;
        r = (t.d[i] - g) * sine + 2.0 * cosine * b;
        carried = sine * r;
        t.d[i + 1] = g + carried;
        g = cosine * r - b;
        double *low = z.row(i), *high = z.row(i + 1);
        for (int64_t k = 0; k < columns; k += LANES) {
          const f64s x = load<f64s>(low + k), y = load<f64s>(high + k);
          store(high + k, sine * x + cosine * y);
          store(low + k, cosine * x - sine * y);
        }
      }
      if (r == 0.0 && i >= first) continue;
      t.d[first] -= carried;
      t.e[first] = g;
      t.e[last] = 0.0;
    }
  }
  return true;
}

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
