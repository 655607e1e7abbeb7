// The reduction to tridiagonal form in two stages, for matrices beyond one block's memory: dense to
// band by products of matrices, one pass over the matrix per kBand rows, and band to tridiagonal
// where access is fast (Bischof, Lang & Sun 2000; Haidar et al. 2011).
#pragma once

#include "cuda/batched_svd_strip.hpp"
#include "cuda/batched_svd_tridiagonal.hpp"

namespace aniso::svd {

/// Entries of a column of the band: kBand below the diagonal, and what bulges beyond.
constexpr int kColumn = 2 * kBand;
/// Reflectors of the first stage that the way back applies at a time.
constexpr int kJoined = 64;

/// n rounded up to whole blocks of kBand.
ANISO_ANYWHERE inline int whole_blocks(int n) { return (n + kBand - 1) / kBand * kBand; }

// Memory in doubles: the first stage's three panels, and beside them two rows and two small
// matrices; the second's; and in the workspace the band and one panel.
inline int64_t panel_doubles(int most, int p) {
  const int width = whole_blocks(p), rows = width > kBand * kBand ? width : kBand * kBand;
  return 3 * most * kBand + 2 * rows + 2 * kBand * kBand;
}
inline int64_t chase_doubles(int p, int warps) { return p * kColumn + warps * 2 * kBand; }
inline int64_t band_doubles(int p) { return whole_blocks(p) * (kColumn + kBand); }

/// Row i of S from the products of the reflectors (above the diagonal), [n, n] both.
ANISO_PHASE void join_row(int i, int n, const double* tau, const double* products, double* s) {
  double* row = s + i * n;
  for (int j = 0; j < n; ++j) {
    double sum = 0.0;
    for (int k = i; k < j; ++k) sum += row[k] * products[k * n + j];
    row[j] = j < i ? 0.0 : j == i ? tau[j] : -tau[j] * sum;
  }
}

/// Qᵀ A Q = band, kBand rows at a time: the update A - V Wᵀ - W Vᵀ of some rows is pending until
/// the pass that multiplies A by the next reflectors. Each step may be called on an object of its
/// own, so that it finds its addresses again and has all registers.
template <int kMost, class Team>
class BandReduction {
 public:
  /// At rows first..; band: [width, kColumn] and [width, kBand] of the workspace.
  ANISO_PHASE BandReduction(const Team& team, const Spectrum& s, double* band, int first)
      : team_(team),
        s_(s),
        width_(whole_blocks(s.n)),
        first_(first),
        v_(s.stage + first / kBand % 2 * kMost * kBand),
        u_(s.stage + (1 - first / kBand % 2) * kMost * kBand),
        w_(s.stage + 2 * kMost * kBand),
        s_of_u_(w_ + kMost * kBand),
        small_(s_of_u_ + kBand * kBand),
        rows_(small_ + kBand * kBand),
        band_(band),
        y_(band + width_ * kColumn) {}

  /// Before the first step.
  ANISO_PHASE void clear() {
    for (int i = team_.thread(); i < width_ * kColumn; i += team_.threads()) band_[i] = 0.0;
    team_.sync();
  }

  /// The rows up to date.
  ANISO_PHASE void refresh() {
    Strip<kMost, Team> strip(team_, s_.gram, width_, first_);
    strip.take_factors(v_, w_);
    for (int column = first_ + team_.warp() * kPieceColumns; column < width_;
         column += Team::kWarps * kPieceColumns) {
      strip.fetch(column);
      strip.next();
      strip.update(v_, w_, column);
      strip.put(column);
    }
    team_.sync();
  }

  ANISO_PHASE void keep_diagonal() {
    for (int e = team_.thread(); e < kBand * kBand; e += team_.threads()) {
      const int i = first_ + e / kBand, j = first_ + e % kBand;
      if (i >= j) band_[j * kColumn + i - j] = s_.gram[i * width_ + j];
    }
    team_.sync();
  }

  /// Reflectors of the rows, to the right of their diagonal block: into u, into the rows
  /// themselves, and what they leave into the band. A warp holds a row.
  ANISO_PHASE void factor() {
    const int begin = first_ + kBand, length = width_ - begin;
    double own[kOwnRows][kChunks];
#pragma unroll
    for (int q = 0; q < kOwnRows; ++q) {
      const double* row = s_.gram + (first_ + team_.warp() + q * Team::kWarps) * width_ + begin;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int i = c * team_.lanes() + team_.lane();
        own[q][c] = i < length ? row[i] : 0.0;
      }
    }
#pragma unroll 1
    for (int j = 0; j < kBand; ++j) {
      double* x = rows_ + j % 2 * width_;
#pragma unroll
      for (int q = 0; q < kOwnRows; ++q) {
        if (team_.warp() + q * Team::kWarps == j) reflect(j, own[q], x);
      }
      team_.sync();
#pragma unroll
      for (int q = 0; q < kOwnRows; ++q) turn(j, own[q], team_.warp() + q * Team::kWarps, x);
    }
    team_.sync();
    join();
  }

  /// The rows below: their pending update, and y = A u.
  ANISO_PHASE void pass() {
    const int begin = first_ + kBand;
    const bool pending = first_ > 0;
    for (int row = begin + team_.warp() * kBand; row < width_; row += Team::kWarps * kBand) {
      Strip<kMost, Team> strip(team_, s_.gram, width_, row);
      if (pending) strip.take_factors(v_, w_);
      strip.fetch(begin);
#pragma unroll 1
      for (int column = begin; column < width_; column += kPieceColumns) {
        strip.next();
        if (column + kPieceColumns < width_) strip.fetch(column + kPieceColumns);
        if (pending) {
          strip.update(v_, w_, column);
          strip.put(column);
        }
        strip.multiply(u_, column);
      }
      strip.put_product(y_);
    }
    team_.sync();
  }

  /// W = P - U M / 2 with P = Y S and M = Sᵀ Uᵀ P: the update that u brings is A - U Wᵀ - W Uᵀ.
  ANISO_PHASE void set_w() {
    const int begin = first_ + kBand;
    for (int i = begin + team_.thread(); i < width_; i += team_.threads()) {
      double row[kBand];
#pragma unroll
      for (int k = 0; k < kBand; ++k) row[k] = y_[i * kBand + k];
#pragma unroll
      for (int k = kBand - 1; k >= 0; --k) {
        double sum = 0.0;
#pragma unroll
        for (int l = 0; l <= k; ++l) sum += row[l] * s_of_u_[l * kBand + k];
        w_[panel_at<kMost>(i, k)] = sum;
      }
    }
    team_.sync();
    // In two halves, by the parity of the row.
    for (int e = team_.thread(); e < 2 * kBand * kBand; e += team_.threads()) {
      const int k = e / kBand % kBand, l = e % kBand;
      double sum = 0.0;
      for (int i = begin + e / (kBand * kBand); i < width_; i += 2) {
        sum += u_[panel_at<kMost>(i, k)] * w_[panel_at<kMost>(i, l)];
      }
      rows_[e] = sum;
    }
    team_.sync();
    for (int e = team_.thread(); e < kBand * kBand; e += team_.threads()) {
      const int k = e / kBand, l = e % kBand;
      double sum = 0.0;
      for (int i = 0; i <= k; ++i) {
        const double* product = rows_ + i * kBand + l;
        sum += s_of_u_[i * kBand + k] * (product[0] + product[kBand * kBand]);
      }
      small_[e] = 0.5 * sum;
    }
    team_.sync();
    for (int i = begin + team_.thread(); i < width_; i += team_.threads()) {
      double row[kBand];
#pragma unroll
      for (int k = 0; k < kBand; ++k) row[k] = u_[panel_at<kMost>(i, k)];
#pragma unroll 2
      for (int l = 0; l < kBand; ++l) {
        double sum = 0.0;
#pragma unroll
        for (int k = 0; k < kBand; ++k) sum += row[k] * small_[k * kBand + l];
        w_[panel_at<kMost>(i, l)] -= sum;
      }
    }
    team_.sync();
  }

 private:
  static constexpr int kChunks = (kMost + Team::kLanes - 1) / Team::kLanes;
  static constexpr int kOwnRows = kBand / Team::kWarps;

  /// Row j of the panel becomes a reflector x.
  ANISO_PHASE void reflect(int j, double (&own)[kChunks], double* x) {
    const int begin = first_ + kBand, length = width_ - begin;
    double here = 0.0, rest = 0.0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int i = c * team_.lanes() + team_.lane();
      if (i == j) here = own[c];
      if (i > j) rest += own[c] * own[c];
    }
    const Reflector h = Reflector::of(team_.warp_sum(here), team_.warp_sum(rest));
    if (team_.lane() == 0) s_.tau()[first_ + j] = h.tau;
    // Of all entries of a lane the addresses lie one constant apart.
    double *column = band_ + (first_ + j) * kColumn + kBand - j + team_.lane(),
           *row = s_.gram + (first_ + j) * width_ + begin + team_.lane(),
           *panel = u_ + panel_at<kMost>(begin + team_.lane(), j);
    x += team_.lane();
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int step = c * team_.lanes(), i = step + team_.lane();
      if (i >= length) continue;
      if (i <= j) column[step] = i == j ? h.beta : own[c];
      own[c] = i < j ? 0.0 : i == j ? 1.0 : own[c] * h.inverse;
      x[step] = panel[4 * step] = row[step] = own[c];
    }
  }

  /// Row `row` of the panel after reflector j: later rows are turned, earlier ones, reflectors by
  /// now, multiplied by it.
  ANISO_PHASE void turn(int j, double (&own)[kChunks], int row, const double* x) {
    if (row == j) return;
    const int length = width_ - first_ - kBand;
    double dot = 0.0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int i = c * team_.lanes() + team_.lane();
      if (i < length) dot += own[c] * x[i];
    }
    dot = team_.warp_sum(dot);
    if (row < j && team_.lane() == 0) small_[row * kBand + j] = dot;
    if (row < j) return;
    const double along = s_.tau()[first_ + j] * dot;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int i = c * team_.lanes() + team_.lane();
      if (i < length) own[c] -= along * x[i];
    }
  }

  /// S of H₁ H₂ … = I - U S Uᵀ, upper triangular (Schreiber & Van Loan 1989), by rows.
  ANISO_PHASE void join() {
    for (int i = team_.thread(); i < kBand; i += team_.threads()) {
      join_row(i, kBand, s_.tau() + first_, small_, s_of_u_);
    }
    team_.sync();
  }

  const Team team_;
  const Spectrum s_;
  const int width_, first_;
  double *v_, *u_, *w_;              // [kMost, kBand]: the pending update, and the next reflectors
  double *s_of_u_, *small_, *rows_;  // [kBand, kBand] twice, and two rows
  double *band_, *y_;
};

/// Band to tridiagonal: sweep s clears column s below e[s] by a reflector of kBand rows, which
/// spoils the block below; so does the next, to the end. A warp per sweep, each three steps behind
/// the one before, which is when they no longer meet.
template <class Team>
class BulgeChase {
 public:
  /// reflectors: [n, n] of the workspace for the way back, or null.
  ANISO_PHASE BulgeChase(const Team& team, const Spectrum& s, const double* band,
                         double* reflectors)
      : team_(team),
        s_(s),
        band_(s.stage),
        x_(band_ + s.n * kColumn + team.warp() * 2 * kBand),
        from_(band),
        reflectors_(reflectors) {}

  ANISO_PHASE void run() {
    for (int i = team_.thread(); i < s_.n * kColumn; i += team_.threads()) band_[i] = from_[i];
    team_.sync();
    const int sweeps = s_.n - 2;
#pragma unroll 1
    for (int tick = 0; tick <= 3 * (sweeps - 1); ++tick) {
#pragma unroll 1
      for (int sweep = tick / 3 - team_.warp(); sweep >= 0; sweep -= Team::kWarps) {
        const int step_of_sweep = tick - 3 * sweep, row = sweep + 1 + kBand * step_of_sweep;
        if (row >= s_.n - 1) break;
        step(sweep, row, step_of_sweep > 0);
      }
      team_.sync();
    }
    for (int i = team_.thread(); i < s_.n; i += team_.threads()) {
      s_.d()[i] = *at(i, i);
      s_.e()[i] = i + 1 < s_.n ? *at(i + 1, i) : 0.0;
    }
    team_.sync();
  }

 private:
  ANISO_PHASE double* at(int i, int j) const { return band_ + j * kColumn + i - j; }

  /// Clears the column that belongs to rows `row`.. but for its first entry; `beyond`: it is the
  /// first of a block that bulges.
  ANISO_PHASE void step(int sweep, int row, bool beyond) {
    const int count = s_.n - row < kBand ? s_.n - row : kBand;
    const int column = beyond ? row - kBand : sweep;
    double rest = 0.0;
    team_.warp_sync();
    for (int i = team_.lane(); i < kBand; i += team_.lanes()) {
      x_[i] = i < count ? *at(row + i, column) : 0.0;
      if (i > 0) rest += x_[i] * x_[i];
    }
    rest = team_.warp_sum(rest);
    team_.warp_sync();
    const Reflector h = Reflector::of(x_[0], rest);
    team_.warp_sync();
    for (int i = team_.lane(); i < count; i += team_.lanes()) {
      *at(row + i, column) = i == 0 ? h.beta : 0.0;
      x_[i] = i == 0 ? 1.0 : x_[i] * h.inverse;
      if (reflectors_ != nullptr) {
        reflectors_[sweep * s_.n + row + i] = i == 0 ? h.tau : x_[i];
      }
    }
    team_.warp_sync();
    if (h.tau == 0.0) return;
    turn_beside(row, column, count, beyond, h.tau);
    turn_diagonal(row, count, h.tau);
  }

  /// The rest of the block to the left, a lane per column, and the block below, a lane per row.
  ANISO_PHASE void turn_beside(int row, int column, int count, bool beyond, double tau) {
    const int below = s_.n - row - count;
    for (int l = team_.lane(); l < 2 * kBand; l += team_.lanes()) {
      const bool left = l < kBand;
      const int m = l % kBand;
      if (left ? !beyond || m == kBand - 1 : m >= below) continue;
      double* entries = left ? at(row, column + 1 + m) : at(row + kBand + m, row);
      const int stride = left ? 1 : kColumn - 1;
      double own[kBand], even = 0.0, odd = 0.0;
#pragma unroll
      for (int i = 0; i < kBand; ++i) {
        own[i] = i < count ? entries[i * stride] : 0.0;
        (i % 2 == 0 ? even : odd) += own[i] * x_[i];
      }
      const double along = tau * (even + odd);
#pragma unroll
      for (int i = 0; i < kBand; ++i) {
        if (i < count) entries[i * stride] = own[i] - along * x_[i];
      }
    }
  }

  /// The diagonal block from both sides: D - x wᵀ - w xᵀ, w = p - (τ/2)(pᵀx) x, p = τ D x.
  ANISO_PHASE void turn_diagonal(int row, int count, double tau) {
    double *p = x_ + kBand, share = 0.0;
    for (int i = team_.lane(); i < count; i += team_.lanes()) {
      double even = 0.0, odd = 0.0;
#pragma unroll
      for (int j = 0; j < kBand; ++j) {
        const double entry = j >= count ? 0.0
                             : j <= i   ? *at(row + i, row + j)
                                        : *at(row + j, row + i);
        (j % 2 == 0 ? even : odd) += entry * x_[j];
      }
      p[i] = tau * (even + odd);
      share += p[i] * x_[i];
    }
    const double twice = tau * team_.warp_sum(share);
    team_.warp_sync();
    for (int i = team_.lane(); i < count; i += team_.lanes()) {
      const double x = x_[i], rest = p[i] - twice * x;
#pragma unroll
      for (int j = 0; j < kBand; ++j) {
        if (j <= i) *at(row + i, row + j) -= x * p[j] + rest * x_[j];
      }
    }
  }

  const Team team_;
  const Spectrum s_;
  double *band_, *x_;  // the band, and of this warp two vectors [kBand]
  const double* from_;
  double* reflectors_;
};

/// Vectors of T, columns [n, count], into vectors of the band. A thread per vector, which holds the
/// rows of one reflector; that of the sweep before begins one row above.
template <class Team>
ANISO_APART void turn_back_bulges(const Team& team, int n, int count, const double* reflectors,
                                  double* columns) {
#pragma unroll 1
  for (int j = team.thread(); j < count; j += team.threads()) {
#pragma unroll 1
    for (int last = n - 2; last > 0; last -= kBand) {
      // `last` is the row where the reflectors of this step end up, n - 2 less whole blocks.
      const int offset = n - 2 - last;
      double z[kBand];
#pragma unroll
      for (int i = 0; i < kBand; ++i) z[i] = i < 2 ? columns[(n - 2 + i) * count + j] : 0.0;
#pragma unroll 1
      for (int row = n - 2;; --row) {
        const double* x = reflectors + (row - 1 - offset) * n + row;
        double even = z[0], odd = 0.0, own[kBand];
#pragma unroll
        for (int i = 1; i < kBand; ++i) {
          own[i] = row + i < n ? x[i] : 0.0;
          (i % 2 == 0 ? even : odd) += own[i] * z[i];
        }
        const double along = x[0] * (even + odd);
        z[0] -= along;
#pragma unroll
        for (int i = 1; i < kBand; ++i) z[i] -= along * own[i];
        if (row == offset + 1) break;
        if (row + kBand <= n) columns[(row + kBand - 1) * count + j] = z[kBand - 1];
#pragma unroll
        for (int i = kBand - 1; i > 0; --i) z[i] = z[i - 1];
        z[0] = columns[(row - 1) * count + j];
      }
#pragma unroll
      for (int i = 0; i < kBand; ++i) {
        if (offset + 1 + i < n) columns[(offset + 1 + i) * count + j] = z[i];
      }
    }
  }
  team.sync();
}

/// Reflector m of the first stage at position i, both counted from where a group begins.
struct FirstReflectors {
  const double* gram;
  int stride, first, begin;
  bool deep;
  bool swapped;

  ANISO_PHASE double operator()(int a, int b) const {
    const int row = first + (swapped ? b : a), i = begin + (swapped ? a : b);
    return i >= (row / kBand + 1) * kBand ? gram[row * stride + i] : 0.0;
  }
};

/// Room of PanelsBack, in doubles.
inline int64_t joined_doubles(int64_t count) { return 2 * kJoined * (kJoined + count); }

/// Vectors of the band into vectors of the matrix: rows [count, n], kJoined reflectors at a time,
/// the last first. Each step on an object of its own, as in the reduction.
template <class Team>
class PanelsBack {
 public:
  /// Where the last group begins, or below 0.
  static ANISO_PHASE int last(int n) {
    return (whole_blocks(n) - kBand + kJoined - 1) / kJoined * kJoined - kJoined;
  }

  ANISO_PHASE PanelsBack(const Team& team, const Spectrum& s, int count, double* room, int first)
      : team_(team),
        s_(s),
        count_(count),
        first_(first),
        size_(whole_blocks(s.n) - kBand - first < kJoined ? whole_blocks(s.n) - kBand - first
                                                          : kJoined),
        products_(room),
        joined_(room + kJoined * kJoined),
        along_(joined_ + kJoined * kJoined),
        turned_(along_ + count * kJoined) {}

  /// The group's reflectors as one.
  ANISO_PHASE void join() const {
    const int size = size_;
    double* products = products_;
    multiply(team_, s_.stage, {size, size, length()}, false, reflectors(), reflectors(),
             [=](int i, int j, double value) { products[i * size + j] = value; });
    for (int i = team_.thread(); i < size; i += team_.threads()) {
      join_row(i, size, s_.tau() + first_, products_, joined_);
    }
    team_.sync();
  }

  ANISO_PHASE void multiply_rows(const double* rows) const {
    const int size = size_;
    double* along = along_;
    multiply(team_, s_.stage, {count_, size, length()}, false, RowsOf{rows + begin(), s_.n},
             reflectors(), [=](int i, int j, double value) { along[i * size + j] = value; });
  }

  ANISO_PHASE void multiply_joined() const {
    const int size = size_;
    double* turned = turned_;
    multiply(team_, s_.stage, {count_, size, size}, false, RowsOf{along_, size},
             RowsOf{joined_, size},
             [=](int i, int j, double value) { turned[i * size + j] = value; });
  }

  ANISO_PHASE void subtract(double* rows) const {
    const int n = s_.n;
    double* from = rows + begin();
    const FirstReflectors columns{s_.gram, whole_blocks(n), first_, begin(), false, true};
    multiply(team_, s_.stage, {count_, length(), size_}, false, RowsOf{turned_, size_}, columns,
             [=](int i, int j, double value) { from[i * n + j] -= value; });
  }

 private:
  ANISO_PHASE int begin() const { return first_ + kBand; }
  ANISO_PHASE int length() const { return s_.n - begin(); }
  ANISO_PHASE FirstReflectors reflectors() const {
    return {s_.gram, whole_blocks(s_.n), first_, begin(), true, false};
  }

  const Team team_;
  const Spectrum s_;
  const int count_, first_, size_;
  double *products_, *joined_, *along_, *turned_;
};

}  // namespace aniso::svd
