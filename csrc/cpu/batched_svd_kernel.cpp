// One matrix at a time, its short side as rows: A = p × q, p <= q. The Gram matrix of the rows in
// float64, its eigenvalues and, where vectors are asked or small values need it, its eigenvectors
// Z; the rows of B = Z A are then σᵢ vᵢ.
#include "cpu/batched_svd_kernel.hpp"

#include "cpu/batched_svd.hpp"
#include "cpu/tridiagonal.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

constexpr double UNIT = 0x1p-53;
// Values below this share of the largest are refined: the Gram matrix leaves them 1e-10 or more of
// the largest in doubt.
constexpr double REFINE_BELOW = 4e-6;
// ... and so are their neighbours up to this share, from which they must be told apart.
constexpr double TAIL_BELOW = 1e-4;
// Vectors of eigenvalues closer than this share of the norm are orthogonalised explicitly.
constexpr double CLUSTER = 1e-5;
// A vector of which less than this is left by that is not trusted.
constexpr double LEFT_OVER = 0.5;
// Rows of B shorter than this share of ‖A‖_F are what rounding left.
constexpr double NOISE = 1e-15;
// Jacobi rotations converge in some 6 to 10 sweeps.
constexpr int MOST_SWEEPS = 60;
// Reflectors applied at a time.
constexpr int64_t BLOCK = 48;
constexpr int PROBES = 8;

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

/// What is known of one value: σ and its bounds.
struct Value {
  double sigma, low, high;
};

template <class T>
class Factorization {
 public:
  Factorization(const MatricesView& x, const SvdView& out, double* scratch)
      : x_(x),
        out_(out),
        wide_(x.m <= x.n),
        p_(wide_ ? x.m : x.n),
        q_(wide_ ? x.n : x.m),
        arena_(scratch),
        a_(arena_.matrix(p_, q_)),
        b_(arena_.matrix(p_, q_)),
        gram_(arena_.matrix(p_, p_)),
        reflectors_(arena_.matrix(p_, p_)),
        z_(arena_.matrix(p_, p_)),
        turn_(arena_.matrix(p_, p_)),
        panel_(arena_.take(PANEL_DEPTH * 24)) {
    const int64_t n = padded_rows(p_) + SHIFTS;
    for (double** v :
         {&t_.d, &t_.e, &tau_, &values_, &norms_, &search_.d, &search_.squares, &found_}) {
      *v = arena_.take(n);
    }
    t_.n = p_;
    rows_ = arena_.take(3 * gram_.stride);
    products_ = arena_.take(2 * BLOCK * BLOCK + 2 * BLOCK * padded_rows(p_));
    block_ = reinterpret_cast<int64_t*>(arena_.take(n));
    order_ = reinterpret_cast<int64_t*>(arena_.take(n));
    search_.active = reinterpret_cast<int64_t*>(arena_.take(n));
    search_.brackets = reinterpret_cast<Bracket*>(arena_.take(10 * n));
    for (f64s** v : {&twist_.above, &twist_.below, &twist_.pivots, &lanes_}) {
      *v = reinterpret_cast<f64s*>(arena_.take(n * LANES));
    }
    along_ = arena_.matrix(PROBES, q_);
    for (Matrix* m : {&signs_, &weighted_, &across_, &images_}) *m = arena_.matrix(PROBES, p_);
    bounds_ = reinterpret_cast<Value*>(arena_.take(3 * n));
  }

  void run(int64_t index, bool high) {
    index_ = index;
    converged_ = true;
    load_matrix();
    exponent_ = 0;
    if (sizeof(T) == 8) bring_to_one();
    norm_ = frobenius();
    // Fourth powers of these stay in range; a NaN passes.
    if (norm_ < 0x1p-40 || norm_ > 0x1p40) {
      bring_to_one();
      norm_ = frobenius();
    }
    if (!(norm_ <= __DBL_MAX__)) return refuse();
    method_ = SVD_GRAM;
    const bool vectors = out_.left != nullptr;
    if (high) {
      set_identity(z_);
      copy(a_, b_);
      rotate_rows();
    } else {
      reduce(a_);
      if (sizeof(T) == 8) {
        eigenvectors(z_, p_, false);
        orthogonalize(z_);
        multiply_into(z_, a_, b_);
        rotate_rows();
      } else {
        find_values(out_.k);
        const bool fine = !too_small(values_[out_.k - 1]);
        if (fine && !vectors) return write_values();
        if (!fine && out_.k < p_) find_values(p_);
        decompose(fine ? out_.k : p_, true);
        if (!fine) refine(p_);
      }
    }
    finish(vectors);
  }

 private:
  // ---- the matrix ----

  void load_matrix() {
    const int64_t outer = wide_ ? x_.row_stride : x_.column_stride;
    const int64_t inner = wide_ ? x_.column_stride : x_.row_stride;
    const T* from = static_cast<const T*>(x_.data) + index_ * x_.batch_stride;
    if (inner == 1) {
      for (int64_t i = 0; i < p_; ++i) load_row(from + i * outer, a_.row(i));
    } else {
      load_transposed(from, outer, inner);
    }
    for (int64_t i = 0; i < padded_rows(p_); ++i) {
      for (int64_t k = i < p_ ? q_ : 0; k < a_.stride; ++k) a_.row(i)[k] = 0.0;
    }
  }

  double frobenius() const {
    double total = 0.0;
    for (int64_t i = 0; i < p_; ++i) total += dot(a_.row(i), a_.row(i), padded(q_));
    return __builtin_sqrt(total);
  }

  void load_row(const T* from, double* to) const {
    int64_t k = 0;
    for (; k + LANES <= q_; k += LANES) store(to + k, load<f64s>(from + k));
    for (; k < q_; ++k) to[k] = value_of(from[k]);
  }

  /// Blocks of 8 × 8, so that every cache line is read once.
  void load_transposed(const T* from, int64_t outer, int64_t inner) const {
    for (int64_t k = 0; k < q_; k += 8) {
      for (int64_t i = 0; i < p_; i += 8) {
        for (int64_t kk = k; kk < k + 8 && kk < q_; ++kk) {
          for (int64_t ii = i; ii < i + 8 && ii < p_; ++ii) {
            a_.row(ii)[kk] = value_of(from[ii * outer + kk * inner]);
          }
        }
      }
    }
  }

  static double value_of(const T& x) { return load<double>(&x); }

  /// Squares of float64 may leave its range: the largest entry is brought to [1/2, 1).
  void bring_to_one() {
    double largest = 0.0;
    for (int64_t i = 0; i < p_; ++i) {
      for (int64_t k = 0; k < q_; ++k) {
        const double size = __builtin_fabs(a_.row(i)[k]);
        // A NaN becomes the largest, too.
        if (!(size <= largest)) largest = size;
      }
    }
    if (!(largest > 0.0 && largest <= __DBL_MAX__)) return;
    exponent_ = __builtin_ilogb(largest) + 1;
    // In two steps: 2^-exponent itself may leave the range.
    const int half = exponent_ / 2;
    for (int64_t i = 0; i < p_; ++i) {
      scale(a_.row(i), __builtin_scalbn(1.0, -half), padded(q_));
      scale(a_.row(i), __builtin_scalbn(1.0, half - exponent_), padded(q_));
    }
  }

  static void copy(const Matrix& from, const Matrix& to) {
    for (int64_t i = 0; i < padded_rows(from.rows) * from.stride; i += LANES) {
      store(to.data + i, load<f64s>(from.data + i));
    }
  }

  static void set_identity(const Matrix& m) {
    for (int64_t i = 0; i < padded_rows(m.rows) * m.stride; ++i) m.data[i] = 0.0;
    for (int64_t i = 0; i < m.rows; ++i) m.row(i)[i] = 1.0;
  }

  void multiply_into(const Matrix& left, const Matrix& right, const Matrix& out) const {
    clear(out.from_row(0, left.rows));
    multiply(left, right, out, panel_);
  }

  /// The first `count` rows of z_ and b_, after reduce().
  void decompose(int64_t count, bool fast) {
    count_ = count;
    eigenvectors(z_, count, fast);
    multiply_into(z_.from_row(0, count), a_, b_);
    set_norms(0, count);
  }

  // ---- the symmetric eigenproblem of the rows' Gram matrix ----

  bool too_small(double eigenvalue) const {
    return eigenvalue < REFINE_BELOW * REFINE_BELOW * values_[0];
  }

  /// The tridiagonal form t_ of rows rowsᵀ.
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

  /// The largest `count` eigenvalues of t_, descending, into values_.
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
      sort_descending(found_, n);
      for (int64_t j = 0; j < n; ++j) values_[j] = found_[order_[j]];
    }
  }

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

  /// order_: positions of v, largest first.
  void sort_descending(const double* v, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      int64_t at = i;
      for (; at > 0 && v[order_[at - 1]] < v[i]; --at) order_[at] = order_[at - 1];
      order_[at] = i;
    }
  }

  /// Eigenvectors of the last Gram matrix as rows of z, for its first `count` values_.
  void eigenvectors(const Matrix& z, int64_t count, bool fast) {
    const int64_t n = t_.n;
    for (int64_t i = 0; i < padded_rows(z.rows) * z.stride; ++i) z.data[i] = 0.0;
    if (!fast || !twisted(z, count)) rotated(z, n);
    Matrix rows = z.from_row(0, count);
    rows.columns = n;
    apply_reflectors(rows);
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
    sort_descending(t_.d, n);
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
      multiply(left, triangle, right, panel_);
      multiply<true>(right, v, part, panel_);
    }
  }

  /// S from the products of the reflectors.
  static void combine(const Matrix& products, const Matrix& s, const double* tau) {
    for (int64_t i = 0; i < padded_rows(BLOCK) * s.stride; ++i) s.data[i] = 0.0;
    for (int64_t j = 0; j < s.rows; ++j) {
      for (int64_t i = 0; i < j; ++i) {
        double sum = 0.0;
        for (int64_t k = i; k < j; ++k) sum += s.row(i)[k] * products.row(k)[j];
        s.row(i)[j] = -tau[j] * sum;
      }
      s.row(j)[j] = tau[j];
    }
  }

  // ---- small values, and rows that must be orthogonal to full precision ----

  void set_norms(int64_t first, int64_t end) {
    for (int64_t i = first; i < end; ++i) {
      norms_[i] = __builtin_sqrt(dot(b_.row(i), b_.row(i), padded(q_)));
      bounds_[i] = from_square(norms_[i], gram_error(q_) * norm_ * norm_, 0.0);
    }
  }

  /// ‖error‖_F of a Gram matrix and of its eigenvalues, over ‖A‖_F²: rounding errors of a sum of
  /// length n grow as √n with a probability beyond doubt (Higham & Mary 2019).
  double gram_error(int64_t columns) const {
    const double chain = static_cast<double>(columns < DOT_DEPTH ? columns : DOT_DEPTH) / LANES +
                         static_cast<double>(columns) / DOT_DEPTH;
    return UNIT * (8.0 * __builtin_sqrt(chain) + 24.0 * __builtin_sqrt(static_cast<double>(p_)));
  }

  /// ‖error‖_F of orthogonal transformations of A, over ‖A‖_F.
  double turn_error() const { return UNIT * 24.0 * __builtin_sqrt(static_cast<double>(p_)); }

  static Value from_square(double sigma, double square_error, double error) {
    const double square = sigma * sigma;
    const double low = square > square_error ? __builtin_sqrt(square - square_error) - error : 0.0;
    return {sigma, low > 0.0 ? low : 0.0, __builtin_sqrt(square + square_error) + error};
  }

  /// The rows below TAIL_BELOW of the largest, cleared of the rows above, have a Gram matrix of
  /// their own that tells them apart; and so on, until nothing small is left.
  void refine(int64_t count) {
    double removed = 0.0;
    for (int64_t first = 0, level = 0; level < 8; ++level) {
      int64_t last = first;
      while (last < count && norms_[last] >= TAIL_BELOW * norms_[first]) ++last;
      if (last == first || last == count || norms_[count - 1] >= REFINE_BELOW * norms_[first]) {
        return;
      }
      method_ = SVD_REFINED;
      removed += clear_of(last, count) + turn_error() * norm_;
      const Matrix tail = b_.from_row(last, count - last);
      double total = 0.0;
      for (int64_t i = last; i < count; ++i) {
        norms_[i] = __builtin_sqrt(dot(b_.row(i), b_.row(i), padded(q_)));
        bounds_[i] = {norms_[i], 0.0, norms_[i] + removed};
        total += norms_[i] * norms_[i];
      }
      if (__builtin_sqrt(total) <= NOISE * norm_) return;
      turn_tail(tail, last);
      const double error = gram_error(q_) * total;
      for (int64_t i = last; i < count; ++i) {
        norms_[i] = __builtin_sqrt(dot(b_.row(i), b_.row(i), padded(q_)));
        bounds_[i] = from_square(norms_[i], error, removed);
      }
      first = last;
    }
  }

  /// Takes from rows first.. of b_ their parts along the rows before; returns the norm of those.
  double clear_of(int64_t first, int64_t end) {
    const int64_t count = end - first;
    Matrix heads = b_.from_row(0, first), tail = b_.from_row(first, count);
    double removed = 0.0;
    for (int turn = 0; turn < 2; ++turn) {
      Matrix parts = gram_;
      parts.rows = count;
      parts.columns = first;
      dots(tail, heads, parts, false);
      for (int64_t j = 0; j < first; ++j) {
        const double inverse = norms_[j] > 0.0 ? 1.0 / norms_[j] : 0.0;
        for (int64_t i = 0; i < count; ++i) {
          const double along = parts.row(i)[j] * inverse;
          if (turn == 0) removed += along * along;
          parts.row(i)[j] = along * inverse;
        }
      }
      multiply<true>(parts, heads, tail, panel_);
    }
    return __builtin_sqrt(removed);
  }

  /// Rotates rows first.. of b_ and z_ into the eigenvectors of the Gram matrix of those of b_.
  void turn_tail(const Matrix& tail, int64_t first) {
    const int64_t count = tail.rows;
    reduce(tail);
    find_values(count);
    Matrix q = gram_;
    q.rows = q.columns = count;
    eigenvectors(q, count, true);
    turn_rows(q, tail);
    turn_rows(q, z_.from_row(first, count));
  }

  /// rows ← q rows, a panel of columns at a time.
  void turn_rows(const Matrix& q, const Matrix& rows) {
    Matrix out = turn_;
    const int64_t width = turn_.stride / TILE_COLUMNS * TILE_COLUMNS;
    for (int64_t k = 0; k < rows.columns; k += width) {
      Matrix part{rows.data + k, rows.rows, rows.columns - k < width ? rows.columns - k : width,
                  rows.stride};
      out.rows = rows.rows;
      out.columns = part.columns;
      multiply_into(q, part, out);
      for (int64_t i = 0; i < rows.rows; ++i) {
        for (int64_t j = 0; j < part.columns; ++j) part.row(i)[j] = out.row(i)[j];
      }
    }
  }

  /// One step of z ← (3 z - z zᵀ z)/2 (Björck & Bowie 1971): a defect of ε n becomes one of ε.
  void orthogonalize(const Matrix& z) {
    dots(z, z, gram_, false);
    for (int64_t i = 0; i < z.rows; ++i) {
      gram_.row(i)[i] -= 1.0;
      scale(gram_.row(i), 0.5, padded(z.rows));
    }
    copy(z, turn_);
    multiply<true>(gram_, turn_, z, panel_);
  }

  /// One-sided Jacobi rotations of the rows of b_, and of z_ with them, until all are orthogonal
  /// (Hestenes 1958; small values are accurate relative to themselves where the scaled rows are
  /// well conditioned: Demmel & Veselić 1992).
  void rotate_rows() {
    const double tolerance = 4.0 * EPSILON;
    method_ = SVD_JACOBI;
    bool rotated = true;
    int sweep = 0;
    for (; rotated && sweep < MOST_SWEEPS; ++sweep) {
      rotated = false;
      for (int64_t i = 0; i < p_; ++i) norms_[i] = dot(b_.row(i), b_.row(i), padded(q_));
      sort_descending(norms_, p_);
      for (int64_t i = 0; i < p_; ++i) {
        for (int64_t j = i + 1; j < p_; ++j) {
          rotated |= rotate_pair(order_[i], order_[j], tolerance);
        }
      }
    }
    converged_ &= !rotated;
    const double error = turn_error() * norm_;
    for (int64_t i = 0; i < p_; ++i) {
      norms_[i] = __builtin_sqrt(dot(b_.row(i), b_.row(i), padded(q_)));
      const double slack = error + norms_[i] * tolerance * static_cast<double>(p_);
      const double low = norms_[i] - slack;
      bounds_[i] = {norms_[i], low > 0.0 ? low : 0.0, norms_[i] + slack};
    }
    count_ = p_;
  }

  bool rotate_pair(int64_t i, int64_t j, double tolerance) {
    if (norms_[j] == 0.0) return false;
    const double product = dot(b_.row(i), b_.row(j), padded(q_));
    if (!(__builtin_fabs(product) >
          tolerance * __builtin_sqrt(norms_[i]) * __builtin_sqrt(norms_[j]))) {
      return false;
    }
    const double zeta = (norms_[j] - norms_[i]) / (2.0 * product);
    const double tangent =
        __builtin_copysign(1.0, zeta) / (__builtin_fabs(zeta) + __builtin_hypot(1.0, zeta));
    const double cosine = 1.0 / __builtin_hypot(1.0, tangent), sine = cosine * tangent;
    turn_pair(b_.row(i), b_.row(j), cosine, sine, padded(q_));
    turn_pair(z_.row(i), z_.row(j), cosine, sine, padded(p_));
    norms_[i] -= tangent * product;
    norms_[j] += tangent * product;
    return true;
  }

  static void turn_pair(double* a, double* b, double cosine, double sine, int64_t n) {
    for (int64_t k = 0; k < n; k += LANES) {
      const f64s x = load<f64s>(a + k), y = load<f64s>(b + k);
      store(a + k, cosine * x - sine * y);
      store(b + k, sine * x + cosine * y);
    }
  }

  // ---- results ----

  void refuse() {
    const double nan = __builtin_nan("");
    out_.methods[index_] = SVD_NOT_FINITE;
    for (int64_t j = 0; j < out_.k; ++j) write(j, {nan, nan, nan});
    out_.checks[index_] = out_.checks[x_.b + index_] = nan;
    if (out_.left == nullptr) return;
    for (int64_t j = 0; j < out_.k; ++j) {
      order_[j] = j;
      for (int64_t i = 0; i < q_; ++i) b_.row(j)[i] = 0.0;
      for (int64_t i = 0; i < p_; ++i) z_.row(j)[i] = 0.0;
    }
    write_vectors();
  }

  void write(int64_t j, const Value& value) {
    const int64_t at = index_ * out_.k + j;
    out_.values[at] = __builtin_scalbn(value.sigma, exponent_);
    out_.bounds[at] = __builtin_scalbn(value.low, exponent_);
    out_.bounds[x_.b * out_.k + at] = __builtin_scalbn(value.high, exponent_);
  }

  void write_values() {
    const double error = gram_error(q_) * norm_ * norm_;
    for (int64_t j = 0; j < out_.k; ++j) {
      write(j, from_square(__builtin_sqrt(values_[j] > 0.0 ? values_[j] : 0.0), error, 0.0));
    }
    out_.methods[index_] = SVD_GRAM;
    out_.checks[index_] = out_.checks[x_.b + index_] = __builtin_nan("");
  }

  void finish(bool vectors) {
    out_.methods[index_] = converged_ ? method_ : SVD_FAILED;
    sort_descending(norms_, count_);
    for (int64_t j = 0; j < out_.k; ++j) write(j, bounds_[order_[j]]);
    out_.checks[index_] = out_.checks[x_.b + index_] = __builtin_nan("");
    if (!vectors) return;
    for (int64_t j = 0; j < out_.k; ++j) make_unit(j);
    check();
    write_vectors();
  }

  /// Row j (in order) of b_ to length 1. Where only rounding errors are left of it, it is made
  /// orthogonal to the rows before; where nothing is left by that, any such direction will do.
  void make_unit(int64_t j) {
    double* row = b_.row(order_[j]);
    const double norm = norms_[order_[j]];
    const int64_t columns = padded(q_);
    if (norm > 0.0) scale(row, 1.0 / norm, columns);
    if (norm > NOISE * norm_) return;
    uint64_t state = static_cast<uint64_t>(j + 1);
    for (int turn = norm > 0.0 ? 0 : -1; turn < 2; ++turn) {
      if (turn < 0) fill_randomly(row, state);
      for (int64_t i = 0; i < j; ++i) {
        const double* other = b_.row(order_[i]);
        add_scaled(row, other, -dot(row, other, columns), columns);
      }
      const double left = __builtin_sqrt(dot(row, row, columns));
      if (left < LEFT_OVER && turn >= 0) turn = -2;
      if (left > 0.0) scale(row, 1.0 / left, columns);
    }
  }

  void fill_randomly(double* row, uint64_t& state) const {
    for (int64_t k = 0; k < q_; ++k) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      row[k] = static_cast<double>(state >> 11) * 0x1p-53 - 0.5;
    }
  }

  /// The vectors as written: the sign makes the largest entry of the right one positive.
  void write_vectors() {
    for (int64_t j = 0; j < out_.k; ++j) {
      const double* right = wide_ ? b_.row(order_[j]) : z_.row(order_[j]);
      f64s most = {}, least = {};
      for (int64_t i = 0; i < x_.n; i += LANES) {
        const f64s entries = load<f64s>(right + i);
        most = max_of(most, entries);
        least = entries < least ? entries : least;
      }
      double top = 0.0, bottom = 0.0;
      for (int lane = 0; lane < LANES; ++lane) {
        top = max_of(top, most[lane]);
        bottom = least[lane] < bottom ? least[lane] : bottom;
      }
      tau_[j] = -bottom > top ? -1.0 : 1.0;
    }
    if (out_.wide) {
      write_both(static_cast<double*>(out_.left), static_cast<double*>(out_.right));
    } else {
      write_both(static_cast<float*>(out_.left), static_cast<float*>(out_.right));
    }
  }

  template <class Out>
  void write_both(Out* left, Out* right) const {
    const Matrix& from_left = wide_ ? z_ : b_;
    const Matrix& from_right = wide_ ? b_ : z_;
    right += index_ * out_.k * x_.n;
    for (int64_t j = 0; j < out_.k; ++j) {
      const double* row = from_right.row(order_[j]);
      for (int64_t i = 0; i < x_.n; ++i) right[j * x_.n + i] = static_cast<Out>(tau_[j] * row[i]);
    }
    left += index_ * x_.m * out_.k;
    // Blocks of 8 × 8, so that every cache line is written once.
    for (int64_t first = 0; first < x_.m; first += 8) {
      const int64_t last = first + 8 < x_.m ? first + 8 : x_.m;
      for (int64_t j = 0; j < out_.k; ++j) {
        const double* row = from_left.row(order_[j]);
        for (int64_t i = first; i < last; ++i) {
          left[i * out_.k + j] = static_cast<Out>(tau_[j] * row[i]);
        }
      }
    }
  }

  // ---- checks by random probes: E‖R ω‖² = ‖R‖_F² for ω of random signs (Hutchinson 1990) ----

  /// Probes are rows: ω over the rows of z_ and b_, zero at those that are not returned.
  void check() {
    clear(signs_);
    clear(weighted_);
    for (int64_t j = 0; j < out_.k; ++j) {
      for (int64_t c = 0; c < PROBES; ++c) {
        const double sign = probe_sign(j, c);
        signs_.row(c)[order_[j]] = sign;
        weighted_.row(c)[order_[j]] = sign * norms_[order_[j]];
      }
    }
    const Matrix rows = b_.from_row(0, count_), short_rows = z_.from_row(0, count_);
    multiply_into(signs_, rows, along_);
    const double defect_long = defect(along_, rows);
    // ω S Z - ω Vᵀ Aᵀ, of which the second is subtracted last.
    multiply_into(weighted_, short_rows, across_);
    dots(along_, a_, images_, false);
    const double residual = distance(across_, images_, p_);
    multiply_into(signs_, short_rows, across_);
    const double defect_short = defect(across_, short_rows);
    const double scale = norm_ > 0.0 ? norm_ : 1.0;
    out_.checks[index_] = __builtin_sqrt(residual / PROBES) / scale;
    out_.checks[x_.b + index_] = __builtin_sqrt(max_of(defect_long, defect_short) / PROBES);
  }

  /// Σ over probes of ‖ω Q Qᵀ - ω‖² over the rows returned, given images = ω Q.
  double defect(const Matrix& images, const Matrix& q) {
    dots(images, q, images_, false);
    double total = 0.0;
    for (int64_t c = 0; c < PROBES; ++c) {
      for (int64_t j = 0; j < out_.k; ++j) {
        const double rest = images_.row(c)[order_[j]] - signs_.row(c)[order_[j]];
        total += rest * rest;
      }
    }
    return total;
  }

  static double distance(const Matrix& a, const Matrix& b, int64_t columns) {
    double total = 0.0;
    for (int64_t c = 0; c < PROBES; ++c) {
      for (int64_t i = 0; i < columns; ++i) {
        const double rest = a.row(c)[i] - b.row(c)[i];
        total += rest * rest;
      }
    }
    return total;
  }

  static double probe_sign(int64_t j, int64_t c) {
    uint64_t state = static_cast<uint64_t>(j) * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u;
    state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
    state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
    state ^= state >> 31;
    return (state >> c & 1) != 0 ? 1.0 : -1.0;
  }

  const MatricesView& x_;
  const SvdView& out_;
  const bool wide_;
  const int64_t p_, q_;
  Arena arena_;
  Matrix a_, b_, gram_, reflectors_, z_, turn_;
  Matrix along_{}, signs_{}, weighted_{}, across_{}, images_{};
  double* panel_;
  Tridiagonal t_{};
  SearchScratch search_{};
  TwistScratch twist_{};
  f64s* lanes_ = nullptr;
  double *tau_ = nullptr, *values_ = nullptr, *norms_ = nullptr, *found_ = nullptr;
  double *products_ = nullptr, *rows_ = nullptr;
  int64_t *block_ = nullptr, *order_ = nullptr;
  Value* bounds_ = nullptr;
  int64_t index_ = 0, blocks_ = 0, count_ = 0;
  int exponent_ = 0;
  double norm_ = 0.0, spread_ = 0.0;
  bool converged_ = true;
  SvdMethod method_ = SVD_GRAM;
};

}  // namespace

void batched_svd_one(const MatricesView& x, int64_t index, const SvdView& out, bool high,
                     double* scratch) {
  switch (x.dtype) {
    case DType::f64:
      return Factorization<double>(x, out, scratch).run(index, high);
    case DType::f32:
      return Factorization<float>(x, out, scratch).run(index, high);
    case DType::f16:
      return Factorization<f16>(x, out, scratch).run(index, high);
    case DType::bf16:
      return Factorization<bf16>(x, out, scratch).run(index, high);
  }
}

}  // namespace aniso::cpu::ANISO_ISA
