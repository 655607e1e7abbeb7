// One matrix at a time, its short side as rows: A = p × q, p <= q. The Gram matrix of the rows in
// float64, its eigenvalues and, where vectors are asked or small values need it, its eigenvectors
// Z; the rows of B = Z A are then σᵢ vᵢ.
#include "cpu/batched_svd_kernel.hpp"

#include "cpu/batched_svd.hpp"
#include "cpu/gram_eigen.hpp"

namespace aniso::cpu::ANISO_ISA {
namespace {

constexpr double UNIT = 0x1p-53;
// Values below this share of the largest are refined: the Gram matrix leaves them 1e-10 or more of
// the largest in doubt.
constexpr double REFINE_BELOW = 4e-6;
// ... and so are their neighbours up to this share, from which they must be told apart.
constexpr double TAIL_BELOW = 1e-4;
// Rows of B shorter than this share of ‖A‖_F are what rounding left.
constexpr double NOISE = 1e-15;
// Jacobi rotations converge in some 6 to 10 sweeps.
constexpr int MOST_SWEEPS = 60;
constexpr int PROBES = 8;

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
        z_(arena_.matrix(p_, p_)),
        eigen_(arena_, p_) {
    const int64_t n = padded_rows(p_);
    norms_ = arena_.take(n);
    signs_of_rows_ = arena_.take(n);
    order_ = reinterpret_cast<int64_t*>(arena_.take(n));
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
      eigen_.reduce(a_);
      if (sizeof(T) == 8) {
        eigen_.find_values(p_);
        eigen_.eigenvectors(z_, p_);
        orthogonalize(z_);
        multiply_into(z_, a_, b_);
        rotate_rows();
      } else {
        eigen_.find_values(out_.k);
        const bool fine = !too_small(eigen_.value(out_.k - 1));
        if (fine && !vectors) return write_values();
        if (!fine && out_.k < p_) eigen_.find_values(p_);
        decompose(fine ? out_.k : p_);
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
      // Products of whole tiles of rows read these, too.
      for (int64_t k = 0; i >= p_ && k < b_.stride; ++k) b_.row(i)[k] = 0.0;
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
    multiply(left, right, out, eigen_.panel());
  }

  /// The first `count` rows of z_ and b_, after reduce().
  void decompose(int64_t count) {
    count_ = count;
    eigen_.eigenvectors(z_, count);
    multiply_into(z_.from_row(0, count), a_, b_);
    set_norms(0, count);
  }

  bool too_small(double eigenvalue) const {
    return eigenvalue < REFINE_BELOW * REFINE_BELOW * eigen_.value(0);
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
      Matrix parts = eigen_.room();
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
      multiply<true>(parts, heads, tail, eigen_.panel());
    }
    return __builtin_sqrt(removed);
  }

  /// Rotates rows first.. of b_ and z_ into the eigenvectors of the Gram matrix of those of b_.
  void turn_tail(const Matrix& tail, int64_t first) {
    const int64_t count = tail.rows;
    eigen_.reduce(tail);
    eigen_.find_values(count);
    Matrix q = eigen_.room();
    q.rows = q.columns = count;
    eigen_.eigenvectors(q, count);
    turn_rows(q, tail);
    turn_rows(q, z_.from_row(first, count));
  }

  /// rows ← q rows, a panel of columns at a time.
  void turn_rows(const Matrix& q, const Matrix& rows) {
    Matrix out = eigen_.more_room();
    const int64_t width = out.stride / TILE_COLUMNS * TILE_COLUMNS;
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
    const Matrix products = eigen_.room(), before = eigen_.more_room();
    dots(z, z, products, false);
    for (int64_t i = 0; i < z.rows; ++i) {
      products.row(i)[i] -= 1.0;
      scale(products.row(i), 0.5, padded(z.rows));
    }
    copy(z, before);
    multiply<true>(products, before, z, eigen_.panel());
  }

  /// One-sided Jacobi rotations of the rows of b_, and of z_ with them, until all are orthogonal
  /// (Hestenes 1958; small values are accurate relative to themselves where the scaled rows are
  /// well conditioned: Demmel & Veselić 1992).
  void rotate_rows() {
    const double tolerance = 4.0 * EPSILON;
    method_ = SVD_JACOBI;
    bool more = true;
    for (int sweep = 0; more && sweep < MOST_SWEEPS; ++sweep) {
      largest_cosine_ = largest_tangent_ = 0.0;
      for (int64_t i = 0; i < p_; ++i) norms_[i] = dot(b_.row(i), b_.row(i), padded(q_));
      sort_descending(norms_, p_, order_);
      for (int64_t i = 0; i < p_; ++i) {
        for (int64_t j = i + 1; j < p_; ++j) {
          rotate_pair(order_[i], order_[j], tolerance);
        }
      }
      // Later rotations leave at most the product of a cosine that was removed.
      more = largest_cosine_ * largest_tangent_ > 0.25 * EPSILON;
    }
    converged_ &= !more;
    const double error = turn_error() * norm_;
    for (int64_t i = 0; i < p_; ++i) {
      norms_[i] = __builtin_sqrt(dot(b_.row(i), b_.row(i), padded(q_)));
      const double slack = error + norms_[i] * tolerance * static_cast<double>(p_);
      const double low = norms_[i] - slack;
      bounds_[i] = {norms_[i], low > 0.0 ? low : 0.0, norms_[i] + slack};
    }
    count_ = p_;
  }

  void rotate_pair(int64_t i, int64_t j, double tolerance) {
    if (!(norms_[i] > 0.0 && norms_[j] > 0.0)) return;
    const double product = dot(b_.row(i), b_.row(j), padded(q_));
    const double cosine_before =
        __builtin_fabs(product) / (__builtin_sqrt(norms_[i]) * __builtin_sqrt(norms_[j]));
    if (!(cosine_before > tolerance)) return;
    const double zeta = (norms_[j] - norms_[i]) / (2.0 * product);
    const double tangent =
        __builtin_copysign(1.0, zeta) / (__builtin_fabs(zeta) + __builtin_hypot(1.0, zeta));
    const double cosine = 1.0 / __builtin_hypot(1.0, tangent), sine = cosine * tangent;
    turn_pair(b_.row(i), b_.row(j), cosine, sine, padded(q_));
    if (out_.left != nullptr) turn_pair(z_.row(i), z_.row(j), cosine, sine, padded(p_));
    norms_[i] -= tangent * product;
    norms_[j] += tangent * product;
    largest_cosine_ = max_of(largest_cosine_, cosine_before);
    largest_tangent_ = max_of(largest_tangent_, __builtin_fabs(tangent));
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
    set_checks(nan, nan);
    if (out_.left == nullptr) return;
    for (int64_t j = 0; j < out_.k; ++j) {
      order_[j] = j;
      for (int64_t i = 0; i < q_; ++i) b_.row(j)[i] = 0.0;
      for (int64_t i = 0; i < p_; ++i) z_.row(j)[i] = 0.0;
    }
    write_vectors();
  }

  void set_checks(double residual, double orthogonality) const {
    if (out_.checks == nullptr) return;
    out_.checks[index_] = residual;
    out_.checks[x_.b + index_] = orthogonality;
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
      write(j,
            from_square(__builtin_sqrt(eigen_.value(j) > 0.0 ? eigen_.value(j) : 0.0), error, 0.0));
    }
    out_.methods[index_] = SVD_GRAM;
    set_checks(__builtin_nan(""), __builtin_nan(""));
  }

  void finish(bool vectors) {
    out_.methods[index_] = converged_ && eigen_.converged() ? method_ : SVD_FAILED;
    sort_descending(norms_, count_, order_);
    for (int64_t j = 0; j < out_.k; ++j) write(j, bounds_[order_[j]]);
    set_checks(__builtin_nan(""), __builtin_nan(""));
    if (!vectors) return;
    for (int64_t j = 0; j < out_.k; ++j) make_unit(j);
    if (out_.checks != nullptr) check();
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
      signs_of_rows_[j] = -bottom > top ? -1.0 : 1.0;
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
      for (int64_t i = 0; i < x_.n; ++i)
        right[j * x_.n + i] = static_cast<Out>(signs_of_rows_[j] * row[i]);
    }
    left += index_ * x_.m * out_.k;
    // Blocks of 8 × 8, so that every cache line is written once.
    for (int64_t first = 0; first < x_.m; first += 8) {
      const int64_t last = first + 8 < x_.m ? first + 8 : x_.m;
      for (int64_t j = 0; j < out_.k; ++j) {
        const double* row = from_left.row(order_[j]);
        for (int64_t i = first; i < last; ++i) {
          left[i * out_.k + j] = static_cast<Out>(signs_of_rows_[j] * row[i]);
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
    set_checks(__builtin_sqrt(residual / PROBES) / scale,
               __builtin_sqrt(max_of(defect_long, defect_short) / PROBES));
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
  Matrix a_, b_, z_;
  GramEigen eigen_;
  Matrix along_{}, signs_{}, weighted_{}, across_{}, images_{};
  double *norms_ = nullptr, *signs_of_rows_ = nullptr;
  int64_t* order_ = nullptr;
  Value* bounds_ = nullptr;
  int64_t index_ = 0, count_ = 0;
  int exponent_ = 0;
  double norm_ = 0.0, largest_cosine_ = 0.0, largest_tangent_ = 0.0;
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
