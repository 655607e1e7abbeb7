// The symmetric eigenproblem of the Gram matrix of some rows, with scratch of its own: reduction,
// values and vectors as tridiagonal.hpp has them, put together.
#pragma once

#include "cpu/tridiagonal.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

// Vectors of eigenvalues closer than this share of the norm are orthogonalised explicitly.
constexpr double CLUSTER = 1e-5;
// A vector of which less than this is left by that is not trusted.
constexpr double LEFT_OVER = 0.5;
// Reflectors applied at a time.
constexpr int64_t BLOCK = 48;

/// Hands out parts of the scratch of one matrix.
class Arena {
 public:
  explicit Arena(double* base) : next_(base) {}
  double* take(int64_t count) {
    double* part = next_;
    next_ += padded(count);
    return part;
  }
  Matrix matrix(int64_t rows, int64_t columns) {
    const int64_t stride = tile_stride(columns);
    return {take(padded_rows(rows) * stride), rows, columns, stride};
  }

 private:
  double* next_;
};

/// Positions of v[0..n), largest first.
inline void sort_descending(const double* v, int64_t n, int64_t* order) {
  for (int64_t i = 0; i < n; ++i) {
    int64_t at = i;
    for (; at > 0 && v[order[at - 1]] < v[i]; --at) order[at] = order[at - 1];
    order[at] = i;
  }
}

/// Eigenvalues and eigenvectors of rows rowsᵀ, for up to `most` rows.
class GramEigen {
 public:
  GramEigen(Arena& arena, int64_t most)
      : gram_(arena.matrix(most, most)),
        reflectors_(arena.matrix(most, most)),
        turn_(arena.matrix(most, most)),
        panel_(arena.take(PANEL_DEPTH * 24)),
        rows_(arena.take(3 * gram_.stride)),
        products_(arena.take(2 * BLOCK * BLOCK + 2 * BLOCK * padded_rows(most))) {
    const int64_t n = padded_rows(most) + SHIFTS;
    for (double** v : {&t_.d, &t_.e, &tau_, &values_, &search_.d, &search_.squares, &found_}) {
      *v = arena.take(n);
    }
    for (int64_t** v : {&block_, &order_, &search_.active}) {
      *v = reinterpret_cast<int64_t*>(arena.take(n));
    }
    search_.brackets = reinterpret_cast<Bracket*>(arena.take(10 * n));
    for (f64s** v : {&twist_.above, &twist_.below, &twist_.pivots, &lanes_}) {
      *v = reinterpret_cast<f64s*>(arena.take(n * LANES));
    }
  }

  /// Eigenvalues as found, descending.
  double value(int64_t j) const { return values_[j]; }
  /// False once rotations did not converge.
  bool converged() const { return converged_; }
  /// Room for a matrix, free between reduce() and the next call.
  Matrix room() const { return gram_; }
  /// The same, free between calls.
  Matrix more_room() const { return turn_; }
  /// Room for `multiply`.
  double* panel() const { return panel_; }

  /// Brings rows rowsᵀ to tridiagonal form.
  void reduce(const Matrix& rows) {
    const int64_t n = rows.rows;
    Matrix gram = gram_;
    gram.rows = gram.columns = n;
    dots(rows, rows, gram, true);
    for (int64_t i = 0; i < n; ++i) {
      // Diagonal blocks are kept whole.
      for (int64_t j = i + 1; j < (i / LANES + 1) * LANES && j < n; ++j) {
        gram.row(i)[j] = gram.row(j)[i];
      }
    }
    t_.n = n;
    tridiagonalize(gram, t_, reflectors_, tau_, rows_);
    spread_ = split(t_);
    find_blocks();
  }

  /// The largest `count` eigenvalues, descending, after reduce().
  void find_values(int64_t count) {
    const int64_t n = t_.n;
    if (blocks_ == 1) {
      find_eigenvalues(t_.d, t_.e, n, n - count, count, found_, search_);
      for (int64_t j = 0; j < count; ++j) values_[j] = found_[count - 1 - j];
    } else {
      for (int64_t first = 0; first < n; first = end_of(first)) {
        find_eigenvalues(t_.d + first, t_.e + first, end_of(first) - first, 0,
                         end_of(first) - first, found_ + first, search_);
      }
      sort_descending(found_, n, order_);
      for (int64_t j = 0; j < n; ++j) values_[j] = found_[order_[j]];
    }
  }

  /// Eigenvectors as rows of z, of the first `count` values, after find_values(). By twisted
  /// factorisation where they can be told apart, else all of them by rotations.
  void eigenvectors(const Matrix& z, int64_t count) {
    const int64_t n = t_.n;
    for (int64_t i = 0; i < padded_rows(z.rows) * z.stride; ++i) z.data[i] = 0.0;
    if (!twisted(z, count)) rotated(z, n);
    Matrix rows = z.from_row(0, count);
    rows.columns = n;
    apply_reflectors(rows);
  }

 private:
  /// block_[i]: where the unreduced block that holds row i begins.
  void find_blocks() {
    blocks_ = 0;
    for (int64_t i = 0; i < t_.n; ++i) {
      const bool starts = i == 0 || t_.e[i - 1] == 0.0;
      block_[i] = starts ? i : block_[i - 1];
      blocks_ += starts;
    }
  }

  int64_t end_of(int64_t first) const {
    int64_t end = first + 1;
    while (end < t_.n && block_[end] == first) ++end;
    return end;
  }

  /// By twisted factorisation; false when some vectors could not be told apart.
  bool twisted(const Matrix& z, int64_t count) {
    if (blocks_ == 1) {
      for (int64_t j = 0; j < count; ++j) order_[j] = 0;
    }
    for (int64_t first = 0; first < t_.n; first = end_of(first)) {
      const int64_t length = end_of(first) - first;
      int64_t chosen[LANES], filled = 0, before = -1, chain = 0;
      for (int64_t j = 0; j <= count; ++j) {
        if (j < count && block_[order_[j]] == first) chosen[filled++] = j;
        if (filled == LANES || (j == count && filled > 0)) {
          twist_lanes(z, first, length, chosen, filled);
          filled = 0;
        }
      }
      for (int64_t j = 0; j < count; ++j) {
        if (block_[order_[j]] != first) continue;
        const bool close = before >= 0 && values_[before] - values_[j] < CLUSTER * spread_;
        chain = close ? chain : j;
        if (close && !separate(z, first, chain, j)) return false;
        before = j;
      }
    }
    return true;
  }

  void twist_lanes(const Matrix& z, int64_t first, int64_t length, const int64_t* chosen,
                   int64_t filled) {
    f64s values = {};
    for (int64_t lane = 0; lane < LANES; ++lane) {
      values[lane] = values_[chosen[lane < filled ? lane : 0]];
    }
    twist(t_.d + first, t_.e + first, length, spread_, values, lanes_, twist_);
    for (int64_t i = 0; i < length; ++i) {
      double entries[LANES];
      store(entries, lanes_[i]);
      for (int64_t lane = 0; lane < filled; ++lane) z.row(chosen[lane])[first + i] = entries[lane];
    }
  }

  /// Row j of z made orthogonal to those of its block from `chain` on.
  bool separate(const Matrix& z, int64_t first, int64_t chain, int64_t j) const {
    const int64_t columns = padded(t_.n);
    for (int turn = 0; turn < 2; ++turn) {
      for (int64_t i = chain; i < j; ++i) {
        if (block_[order_[i]] != first) continue;
        add_scaled(z.row(j), z.row(i), -dot(z.row(i), z.row(j), columns), columns);
      }
      const double left = __builtin_sqrt(dot(z.row(j), z.row(j), columns));
      if (left < LEFT_OVER) return false;
      scale(z.row(j), 1.0 / left, columns);
    }
    return true;
  }

  /// By QL rotations, which also set values_.
  void rotated(const Matrix& z, int64_t n) {
    for (int64_t i = 0; i < padded_rows(z.rows) * z.stride; ++i) turn_.data[i] = z.data[i] = 0.0;
    for (int64_t i = 0; i < n; ++i) turn_.row(i)[i] = 1.0;
    Matrix rows = turn_.from_row(0, n);
    rows.columns = n;
    converged_ &= rotate_ql(t_, rows, spread_);
    sort_descending(t_.d, n, order_);
    for (int64_t j = 0; j < n; ++j) {
      values_[j] = t_.d[order_[j]];
      for (int64_t k = 0; k < padded(n); k += LANES) {
        store(z.row(j) + k, load<f64s>(turn_.row(order_[j]) + k));
      }
    }
  }

  /// rows ← rows H₁ H₂ …, a block of reflectors at a time: I - Vᵀ S V with S upper triangular
  /// (Schreiber & Van Loan 1989).
  void apply_reflectors(const Matrix& rows) {
    const int64_t n = rows.columns;
    for (int64_t first = 1; first < n; first += BLOCK) {
      const int64_t count = first + BLOCK < n ? BLOCK : n - first;
      Matrix v = reflectors_.from_row(first, count);
      v.columns = first + count;
      Matrix part = rows;
      part.columns = v.columns;
      Matrix products{products_, count, count, BLOCK};
      Matrix triangle{products_ + BLOCK * BLOCK, count, count, BLOCK};
      dots(v, v, products, false);
      combine(products, triangle, tau_ + first);
      // dots() clears both, as they share their rows.
      Matrix left{products_ + 2 * BLOCK * BLOCK, rows.rows, count, 2 * BLOCK};
      Matrix right{left.data + BLOCK, rows.rows, count, 2 * BLOCK};
      dots(part, v, left, false);
      const Operand<double> upper{triangle.data, count, count, 1, BLOCK};
      add_product_of<false, false>({left.data, left.rows, count, left.stride}, upper, right.data,
                                   right.stride, panel_);
      multiply<true>(right, v, part, panel_);
    }
  }

  /// Sᵀ from the products of the reflectors.
  static void combine(const Matrix& products, const Matrix& s, const double* tau) {
    for (int64_t j = 0; j < s.rows; ++j) {
      f64s sums[BLOCK / LANES] = {};
      for (int64_t k = 0; k < j; ++k) {
        const double factor = -tau[j] * products.row(k)[j];
#pragma GCC unroll 32
        for (int64_t i = 0; i < BLOCK / LANES; ++i) {
          sums[i] += factor * load<f64s>(s.row(k) + i * LANES);
        }
      }
      for (int64_t i = 0; i < BLOCK / LANES; ++i) store(s.row(j) + i * LANES, sums[i]);
      s.row(j)[j] = tau[j];
    }
  }

  Matrix gram_, reflectors_, turn_;
  double *panel_, *rows_, *products_;
  Tridiagonal t_{};
  SearchScratch search_{};
  TwistScratch twist_{};
  f64s* lanes_ = nullptr;
  double *tau_ = nullptr, *values_ = nullptr, *found_ = nullptr;
  int64_t *block_ = nullptr, *order_ = nullptr;
  int64_t blocks_ = 0;
  double spread_ = 0.0;
  bool converged_ = true;
};

}  // namespace
}  // namespace aniso::cpu::ANISO_ISA
