// Phases of the symmetric eigenproblem by one team: reduction to tridiagonal form, bisection by
// sign counts, vectors by twisted factorisation, orthogonal where values are close, and the way
// back. Each phase ends with all its results visible to the team.
#pragma once

#include <cfloat>

#include "cuda/batched_svd_product.hpp"

namespace aniso::svd {

constexpr double kEpsilon = 0x1p-52;
/// Vectors of eigenvalues closer than this share of the norm are orthogonalised explicitly.
constexpr double kCluster = 1e-5;
/// A vector of which less than this is left by that is not trusted.
constexpr double kLeftOver = 0.5;
/// Vectors orthogonalised at a time.
constexpr int kGroup = 8;
/// The largest order: four vectors of it fill most of the stage.
constexpr int kMostOrder = 512;

/// What the phases keep where access is fast; all but the stage survive from phase to phase.
struct Spectrum {
  int n;
  double* gram;     ///< the symmetric matrix; afterwards its rows hold reflectors
  double* vectors;  ///< [5 n], as below
  double* stage;    ///< at least [kStage], of whoever needs it

  /// [n] diagonal, and [n] beside it; e[n - 1] = 0.
  ANISO_PHASE double* d() const { return vectors; }
  ANISO_PHASE double* e() const { return d() + n; }
  /// [n] reflector r is I - tau[r] x xᵀ with x[r - 1] = 1.
  ANISO_PHASE double* tau() const { return e() + n; }
  /// [n] eigenvalues, descending, and [n] where the unreduced block of each begins and ends.
  ANISO_PHASE double* values() const { return tau() + n; }
  ANISO_PHASE int* begins() const { return reinterpret_cast<int*>(values() + n); }
  ANISO_PHASE int* ends() const { return begins() + n; }
};

/// A row of the pending rank-two update, and of the factor that the next product takes.
struct alignas(16) Pending {
  double v, w;
};

/// Division of a square matrix's leading columns among threads: `parts` threads per column.
struct Columns {
  int width, parts;

  template <class Team>
  static ANISO_PHASE Columns of(const Team& team, int count) {
    const int width = (count + team.lanes() - 1) / team.lanes() * team.lanes();
    return {width, width < team.threads() ? team.threads() / width : 1};
  }
};

/// The reflector of one step of the reduction, the same for all threads.
struct Reflector {
  double tau, inverse, beta;

  /// Of the row (…, alpha) whose other entries have this sum of squares.
  static ANISO_PHASE Reflector of(double alpha, double rest) {
    // Squares that small have lost their digits, and their roots are nothing beside the whole.
    if (rest < 0x1p-900) return {0.0, 0.0, alpha};
    const double length = sqrt(alpha * alpha + rest);
    const double beta = alpha > 0.0 ? -length : length;
    return {(beta - alpha) / beta, 1.0 / (alpha - beta), beta};
  }
};

/// Householder reduction to Qᵀ A Q = T, last row first, two barriers per row: while a row is
/// brought up to date, the update that it belongs to is still pending for all others; one pass
/// applies it and multiplies the result by the next row.
template <class Team>
class Reduction {
 public:
  ANISO_PHASE Reduction(const Team& team, const Spectrum& s)
      : team_(team),
        s_(s),
        pending_(reinterpret_cast<Pending*>(s.stage)),
        rows_(s.stage + 2 * s.n),
        partial_(s.stage + 4 * s.n) {}

  ANISO_PHASE void run() {
    for (int r = s_.n - 1; r >= 1; --r) {
      const double square = settle(r);
      team_.deposit(0, square);
      team_.sync();
      const double alpha = row(r)[r - 1];
      last_ = Reflector::of(alpha, team_.collected(0));
      if (team_.thread() == 0) s_.e()[r - 1] = last_.beta, s_.tau()[r] = last_.tau;
      team_.deposit(1, pass(r, alpha - last_.beta));
      team_.sync();
    }
    settle(0);
    if (team_.thread() == 0) s_.e()[s_.n - 1] = s_.tau()[0] = 0.0;
    team_.sync();
  }

 private:
  ANISO_PHASE double* row(int r) const { return rows_ + r % 2 * s_.n; }

  /// Row r up to date, the reflector before it into v, w and row r + 1; the sum of the squares of
  /// this thread's entries left of the last.
  ANISO_PHASE double settle(int r) {
    const bool first = r + 1 == s_.n;
    const double scale = last_.tau * last_.inverse;
    const double half = first ? 0.0 : 0.5 * scale * scale * team_.collected(1);
    // x[r] = 1 in the reflector of row r + 1.
    const double w_last = first ? 0.0 : scale * product(r) - half;
    double square = 0.0;
    for (int j = team_.thread(); j <= r; j += team_.threads()) {
      double entry = s_.gram[r * s_.n + j];
      Pending now{0.0, 0.0};
      if (!first) {
        now.v = j == r ? 1.0 : row(r + 1)[j] * last_.inverse;
        now.w = scale * product(j) - half * now.v;
        entry -= now.w;
        entry -= w_last * now.v;
        s_.gram[(r + 1) * s_.n + j] = now.v;
      }
      pending_[j] = now;
      row(r)[j] = entry;
      if (j == r) s_.d()[r] = entry;
      if (j < r - 1) square += entry * entry;
    }
    return square;
  }

  /// Entry j of the last pass's product.
  ANISO_PHASE double product(int j) const {
    double total = 0.0;
    for (int part = 0; part < columns_.parts; ++part) total += partial_[part * columns_.width + j];
    return total;
  }

  /// A -= v wᵀ + w vᵀ for the leading r rows, and y = A u with u the row whose last entry is
  /// `last`; this thread's share of uᵀ y.
  ANISO_PHASE double pass(int r, double last) {
    columns_ = Columns::of(team_, r);
    const double* u = row(r);
    const int part = team_.thread() / columns_.width;
    double share = 0.0;
    for (int j = team_.thread() % columns_.width; part < columns_.parts && j < r;
         j += team_.threads()) {
      const Pending own = pending_[j];
      double* at = s_.gram + j;
      double sum = 0.0;
#pragma unroll 4
      for (int i = part; i < r; i += columns_.parts) {
        const Pending other = pending_[i];
        const double entry = at[i * s_.n] - other.v * own.w - other.w * own.v;
        at[i * s_.n] = entry;
        sum += entry * (i == r - 1 ? last : u[i]);
      }
      partial_[part * columns_.width + j] = sum;
      share += sum * (j == r - 1 ? last : u[j]);
    }
    return share;
  }

  const Team team_;
  const Spectrum s_;
  Pending* pending_;
  double* rows_;     // by parity: the row at hand, and the one before
  double* partial_;  // [parts, width] of the last pass's product
  Columns columns_{0, 0};
  Reflector last_{0.0, 0.0, 0.0};
};

/// Sets e to zero where it is below the rounding of the whole; returns the largest sum of a row.
template <class Team>
ANISO_PHASE double split(const Team& team, const Spectrum& s) {
  double norm = 0.0;
  for (int i = 0; i < s.n; ++i) {
    const double left = i > 0 ? fabs(s.e()[i - 1]) : 0.0;
    norm = fmax(norm, fabs(s.d()[i]) + fabs(s.e()[i]) + left);
  }
  team.sync();
  for (int i = team.thread(); i < s.n; i += team.threads()) {
    if (fabs(s.e()[i]) <= 0.25 * kEpsilon * norm) s.e()[i] = 0.0;
  }
  team.sync();
  return norm;
}

ANISO_PHASE uint64_t bits_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

ANISO_PHASE double of_bits(uint64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

/// How many eigenvalues of rows begin..end - 1, an unreduced block of norm up to 1, lie below the
/// shift: sign changes of the leading minors p_i = (d_i - s) p_{i-1} - e²_{i-1} p_{i-2}, which a
/// common power of two keeps in range. The count of a matrix within 4 ε of this one.
ANISO_PHASE int count_below(const double* d, const double* squares, int begin, int end,
                            double shift) {
  constexpr uint64_t kExponent = 0x7ff0000000000000u, kTop = 0x7fd0000000000000u;
  double before = 1.0, now = d[begin] - shift;
  int changes = now < 0.0;
  for (int i = begin + 1; i < end;) {
    const int stop = i + 8 < end ? i + 8 : end;
    for (; i < stop; ++i) {
      const double next = (d[i] - shift) * now - squares[i - 1] * before;
      changes += static_cast<int>((bits_of(next) ^ bits_of(now)) >> 63);
      before = now;
      now = next;
    }
    const uint64_t a = bits_of(now) & kExponent, b = bits_of(before) & kExponent;
    const double down = of_bits(kTop - (a > b ? a : b));
    now *= down;
    before *= down;
  }
  return changes;
}

/// Eigenvalues by bisection, several points of an interval at a time where there are more threads
/// than values.
template <class Team>
class Bisection {
 public:
  ANISO_PHASE Bisection(const Team& team, const Spectrum& s)
      : team_(team),
        s_(s),
        squares_(s.stage),
        low_(squares_ + s.n),
        high_(low_ + s.n),
        begins_(reinterpret_cast<int*>(high_ + s.n)),
        ends_(begins_ + s.n),
        counts_(ends_ + s.n) {}

  /// The `count` largest, each the middle of an interval narrower than 2 ε times the largest.
  /// Where T falls apart into blocks, all are found.
  ANISO_PHASE void run(int count) {
    prepare();
    const bool whole = blocks_ == 1;
    slots_ = whole ? count : s_.n;
    points_ = team_.threads() > slots_ ? team_.threads() / slots_ : 1;
    double width = whole ? begin_on_grid() : begin_anywhere();
    for (; width > tolerance_; width /= points_ + 1) narrow();
    for (int j = team_.thread(); j < slots_; j += team_.threads()) {
      const int rank = whole ? j : rank_of(j);
      s_.values()[rank] = middle(j);
      s_.begins()[rank] = begins_[j];
      s_.ends()[rank] = ends_[j];
    }
    team_.sync();
  }

 private:
  /// e², the blocks and the interval that holds all eigenvalues. A coupling of zero counts as
  /// 2^-65, so that no minor vanishes.
  ANISO_PHASE void prepare() {
    bottom_ = top_ = s_.d()[0];
    blocks_ = 1;
    for (int i = 0; i < s_.n; ++i) {
      const double radius = (i > 0 ? fabs(s_.e()[i - 1]) : 0.0) + fabs(s_.e()[i]);
      bottom_ = fmin(bottom_, s_.d()[i] - radius);
      top_ = fmax(top_, s_.d()[i] + radius);
      blocks_ += i + 1 < s_.n && s_.e()[i] == 0.0;
    }
    const double norm = fmax(fabs(bottom_), fabs(top_));
    // A zero matrix has its values at once.
    tolerance_ = norm > 0.0 ? scalbn(1.0, ilogb(norm) - 52) : DBL_MAX;
    bottom_ -= norm > 0.0 ? 8.0 * tolerance_ : 0.0;
    top_ += norm > 0.0 ? 8.0 * tolerance_ : 0.0;
    for (int i = team_.thread(); i < s_.n; i += team_.threads()) {
      squares_[i] = fmax(s_.e()[i] * s_.e()[i], 0x1p-130);
      int begin = i, end = i + 1;
      while (begin > 0 && s_.e()[begin - 1] != 0.0) --begin;
      while (end < s_.n && s_.e()[end - 1] != 0.0) ++end;
      begins_[i] = begin;
      ends_[i] = end;
    }
    team_.sync();
  }

  /// Index of slot j's eigenvalue in its block, ascending.
  ANISO_PHASE int target(int j) const { return blocks_ == 1 ? s_.n - 1 - j : j - begins_[j]; }

  ANISO_PHASE double middle(int j) const { return 0.5 * (low_[j] + high_[j]); }

  /// Every interval is the whole.
  ANISO_PHASE double begin_anywhere() {
    for (int j = team_.thread(); j < slots_; j += team_.threads()) {
      low_[j] = bottom_;
      high_[j] = top_;
    }
    team_.sync();
    return top_ - bottom_;
  }

  /// An even grid narrows every interval by as many times as it has points.
  ANISO_PHASE double begin_on_grid() {
    const int size = slots_ * points_;
    const double step = (top_ - bottom_) / (size + 1);
    for (int g = team_.thread(); g < size; g += team_.threads()) {
      counts_[g] = count_below(s_.d(), squares_, 0, s_.n, bottom_ + (g + 1) * step);
    }
    team_.sync();
    for (int j = team_.thread(); j < slots_; j += team_.threads()) {
      int at = 0, beyond = size;  // the first point with more than target(j) values below it
      while (at < beyond) {
        const int half = (at + beyond) / 2;
        if (counts_[half] <= target(j)) {
          at = half + 1;
        } else {
          beyond = half;
        }
      }
      low_[j] = at == 0 ? bottom_ : bottom_ + at * step;
      high_[j] = at == size ? top_ : bottom_ + (at + 1) * step;
    }
    team_.sync();
    return step;
  }

  /// Every interval to the part between two of its points.
  ANISO_PHASE void narrow() {
    for (int g = team_.thread(); g < slots_ * points_; g += team_.threads()) {
      const int j = g / points_;
      counts_[g] = count_below(s_.d(), squares_, begins_[j], ends_[j], point(j, g % points_));
    }
    team_.sync();
    for (int j = team_.thread(); j < slots_; j += team_.threads()) {
      int at = 0;
      while (at < points_ && counts_[j * points_ + at] <= target(j)) ++at;
      const double low = at == 0 ? low_[j] : point(j, at - 1);
      const double high = at == points_ ? high_[j] : point(j, at);
      low_[j] = low;
      high_[j] = high;
    }
    team_.sync();
  }

  ANISO_PHASE double point(int j, int at) const {
    if (points_ == 1) return middle(j);
    return low_[j] + (high_[j] - low_[j]) * ((at + 1) / (points_ + 1.0));
  }

  /// How many slots come before slot j in descending order.
  ANISO_PHASE int rank_of(int j) const {
    const double own = middle(j);
    int rank = 0;
    for (int i = 0; i < slots_; ++i) {
      const double other = middle(i);
      rank += other > own || (other == own && i < j);
    }
    return rank;
  }

  const Team team_;
  const Spectrum s_;
  double *squares_, *low_, *high_;
  int *begins_, *ends_;  // blocks by row
  int* counts_;          // [slots, points]
  int slots_ = 0, points_ = 1, blocks_ = 1;
  double bottom_ = 0.0, top_ = 0.0, tolerance_ = 0.0;
};

ANISO_PHASE double away_from_zero(double x, double tiny) { return fabs(x) < tiny ? tiny : x; }

/// Eigenvectors of T, unit length, for values 0..count - 1: `columns` [n, count]; above and below
/// hold as many. One thread per vector: T - λ = L D Lᵀ from above and U D Uᵀ from below, joined
/// where the remaining pivot is least (Parlett & Dhillon 1997).
template <class Team>
ANISO_PHASE void twist(const Team& team, const Spectrum& s, int count, double norm, double* columns,
                       double* above, double* below) {
  const double tiny = 0x1p-200 * norm;
  for (int j = team.thread(); j < count; j += team.threads()) {
    const int begin = s.begins()[j], end = s.ends()[j];
    const double value = s.values()[j];
    double *z = columns + j, *up = above + j, *down = below + j;
    double pivot = away_from_zero(s.d()[begin] - value, tiny);
    for (int i = begin; i + 1 < end; ++i) {
      z[i * count] = pivot;
      const double factor = s.e()[i] / pivot;
      up[i * count] = factor;
      pivot = away_from_zero((s.d()[i + 1] - value) - s.e()[i] * factor, tiny);
    }
    double least = fabs(pivot);
    int where = end - 1;
    pivot = away_from_zero(s.d()[end - 1] - value, tiny);
    for (int i = end - 2; i >= begin; --i) {
      const double factor = s.e()[i] / pivot;
      down[i * count] = factor;
      const double rest = s.d()[i] - value;
      pivot = away_from_zero(rest - s.e()[i] * factor, tiny);
      const double join = fabs(z[i * count] + pivot - rest);
      if (join < least) least = join, where = i;
    }
    double squares = 1.0, entry = 1.0;
    for (int i = where - 1; i >= begin; --i) {
      z[i * count] = entry = -up[i * count] * entry;
      squares += entry * entry;
    }
    entry = 1.0;
    for (int i = where + 1; i < end; ++i) {
      z[i * count] = entry = -down[(i - 1) * count] * entry;
      squares += entry * entry;
    }
    z[where * count] = 1.0;
    const double length = 1.0 / sqrt(squares);
    for (int i = 0; i < s.n; ++i) {
      z[i * count] = i >= begin && i < end ? z[i * count] * length : 0.0;
    }
  }
  team.sync();
}

/// Scattered bits of a number: the same in every run.
ANISO_PHASE uint64_t scattered(uint64_t number) {
  uint64_t state = number * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u;
  state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
  state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
  return state ^ state >> 31;
}

/// ... and from them a number of -1/2 to 1/2.
ANISO_PHASE double scattered_entry(uint64_t number) {
  return static_cast<double>(scattered(number) >> 11) * 0x1p-53 - 0.5;
}

/// Vectors of close values made orthogonal, by Gram-Schmidt sums twice over (Giraud et al. 2005),
/// kGroup vectors at a time.
template <class Team>
class Separation {
 public:
  /// products: [n, kGroup].
  ANISO_PHASE Separation(const Team& team, const Spectrum& s, int count, double* columns,
                         double* products)
      : team_(team), s_(s), count_(count), columns_(columns), products_(products) {}

  /// False when some vectors could not be told apart; of those from `any` on, which all lie in the
  /// last group of close values, it matters only that they are orthogonal.
  ANISO_PHASE bool run(double norm, int any) {
    for (int first = 0, last; first < count_; first = last) {
      last = first + 1;
      while (last < count_ && s_.values()[last - 1] - s_.values()[last] < kCluster * norm) ++last;
      for (int group = first; group < last && last > first + 1; group += kGroup) {
        const int width = last - group < kGroup ? last - group : kGroup;
        for (int turn = 0; turn < 2; ++turn) {
          if (group > first) clear_of(first, group, width);
          if (!clear_inside(group, width, any)) return false;
        }
      }
    }
    return true;
  }

 private:
  /// Vectors group.. without their parts along first..group - 1.
  ANISO_PHASE void clear_of(int first, int group, int width) {
    for (int j = first + team_.thread(); j < group; j += team_.threads()) {
      double sums[kGroup] = {};
#pragma unroll 1
      for (int i = 0; i < s_.n; ++i) add(sums, columns_[i * count_ + j], row(i, group), width);
#pragma unroll
      for (int b = 0; b < kGroup; ++b) products_[(j - first) * kGroup + b] = sums[b];
    }
    team_.sync();
    for (int i = team_.thread(); i < s_.n; i += team_.threads()) {
      double sums[kGroup] = {};
#pragma unroll 1
      for (int j = first; j < group; ++j) {
        add(sums, columns_[i * count_ + j], products_ + (j - first) * kGroup, kGroup);
      }
#pragma unroll
      for (int b = 0; b < kGroup; ++b) {
        if (b < width) row(i, group)[b] -= sums[b];
      }
    }
    team_.sync();
  }

  ANISO_PHASE double* row(int i, int group) const { return columns_ + i * count_ + group; }

  static ANISO_PHASE void add(double (&sums)[kGroup], double factor, const double* from,
                              int width) {
#pragma unroll
    for (int b = 0; b < kGroup; ++b) {
      if (b < width) sums[b] += factor * from[b];
    }
  }

  /// The vectors of one group, one after the other, orthogonal to those before and of length 1.
  ANISO_PHASE bool clear_inside(int group, int width, int any) {
    for (int b = 0; b < width; ++b) {
      for (int c = team_.warp(); c < b; c += Team::kWarps) {
        double sum = 0.0;
        for (int i = team_.lane(); i < s_.n; i += team_.lanes()) {
          sum += row(i, group)[b] * row(i, group)[c];
        }
        sum = team_.warp_sum(sum);
        if (team_.lane() == 0) s_.stage[c] = sum;
      }
      team_.sync();
      double squares = 0.0;
      for (int i = team_.thread(); i < s_.n; i += team_.threads()) {
        double entry = row(i, group)[b];
        for (int c = 0; c < b; ++c) entry -= s_.stage[c] * row(i, group)[c];
        row(i, group)[b] = entry;
        squares += entry * entry;
      }
      const double left = sqrt(team_.sum(squares));
      if (!(left >= kLeftOver)) {
        if (group + b < any || !replace(group + b)) return false;
        continue;
      }
      for (int i = team_.thread(); i < s_.n; i += team_.threads()) row(i, group)[b] /= left;
      team_.sync();
    }
    return true;
  }

  /// Vector j becomes any that is orthogonal to all before it.
  ANISO_PHASE bool replace(int j) {
    for (int i = team_.thread(); i < s_.n; i += team_.threads()) {
      columns_[i * count_ + j] = scattered_entry(static_cast<uint64_t>(i) * count_ + j);
    }
    team_.sync();
    double left = 0.0;
    for (int turn = 0; turn < 3; ++turn) left = clear_of_all(j);
    return left >= kLeftOver;
  }

  /// Vector j without its parts along all before it, brought to length 1; what was left of it.
  ANISO_PHASE double clear_of_all(int j) {
    for (int c = team_.thread(); c < j; c += team_.threads()) {
      double sum = 0.0;
      for (int i = 0; i < s_.n; ++i) sum += columns_[i * count_ + c] * columns_[i * count_ + j];
      products_[c] = sum;
    }
    team_.sync();
    double squares = 0.0;
    for (int i = team_.thread(); i < s_.n; i += team_.threads()) {
      double entry = columns_[i * count_ + j];
      for (int c = 0; c < j; ++c) entry -= products_[c] * columns_[i * count_ + c];
      columns_[i * count_ + j] = entry;
      squares += entry * entry;
    }
    const double left = sqrt(team_.sum(squares));
    for (int i = team_.thread(); i < s_.n; i += team_.threads()) columns_[i * count_ + j] /= left;
    team_.sync();
    return left;
  }

  const Team team_;
  const Spectrum s_;
  int count_;
  double *columns_, *products_;
};

/// Vectors of T into vectors of the matrix: rows [count, n] ← columnsᵀ H₁ H₂ …, a warp per vector
/// at a time, in the registers of its lanes: chunk c has entries c · lanes + lane. No order beyond
/// kMost.
template <int kMost, class Team>
ANISO_PHASE void turn_back(const Team& team, const Spectrum& s, int count, const double* columns,
                           double* rows) {
  constexpr int kChunks = (kMost + Team::kLanes - 1) / Team::kLanes;
  const int n = s.n;
#pragma unroll 1
  for (int j = team.warp(); j < count; j += Team::kWarps) {
    double z[kChunks];
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int i = c * team.lanes() + team.lane();
      if (i < n) z[c] = columns[i * count + j];
    }
#pragma unroll 1
    for (int r = 1; r < n; ++r) {
      const double* x = s.gram + r * n;
      double dot = 0.0;
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int i = c * team.lanes() + team.lane();
        if (i < r) dot += z[c] * x[i];
      }
      const double along = s.tau()[r] * team.warp_sum(dot);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const int i = c * team.lanes() + team.lane();
        if (i < r) z[c] -= along * x[i];
      }
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int i = c * team.lanes() + team.lane();
      if (i < n) rows[j * n + i] = z[c];
    }
  }
  team.sync();
}

}  // namespace aniso::svd
