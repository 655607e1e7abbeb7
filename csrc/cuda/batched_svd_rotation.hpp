// One-sided Jacobi rotations of the rows of a matrix (Hestenes 1958), two blocks of rows at a time:
// the Gram matrix of both is rotated to a diagonal on chip, and the rows follow by a product
// (Bečka, Okša & Vajteršic 2002).
#pragma once

#include "cuda/batched_svd_product.hpp"

namespace aniso::svd {

/// Rows of a block; a pair of them fills one tile, so that its rows can be turned in place.
constexpr int kBlock = kTile / 2;
constexpr int kMostSweeps = 40;
/// Sweeps over the Gram matrix of a pair, of which more than one block makes do with a few.
constexpr int kInnerSweeps = 4;
/// Squares of a norm below this have lost digits, beside a largest of about 1.
constexpr double kVanishing = 0x1p-900;

/// Rows turned at a time where there are p, made even.
inline int paired_rows(int p) { return p < kTile ? p + p % 2 : kTile; }

/// Two matrices of a pair, each row one longer than it needs, so that columns of a warp meet no
/// bank twice, and two numbers for every two rows.
inline int64_t rotation_doubles(int p) {
  const int64_t size = paired_rows(p);
  return 2 * size * (size + 1) + size;
}

/// Below this the cosine of two rows of that length is rounding.
ANISO_PHASE double orthogonal_below(int length) {
  return 0x1p-53 * (8.0 + sqrt(static_cast<double>(length)));
}

/// Where the rows of two blocks lie.
struct BlockRows {
  int first, second;
  ANISO_PHASE int operator()(int i) const { return i < kBlock ? first + i : second + i - kBlock; }
};

/// Those rows as a factor (i, k), and their columns (j, k).
struct RowsOfBlocks {
  const double* data;
  int stride;
  BlockRows row;
  static constexpr bool deep = true;
  ANISO_PHASE double operator()(int i, int k) const { return data[row(i) * stride + k]; }
};
struct ColumnsOfBlocks {
  const double* data;
  int stride;
  BlockRows row;
  static constexpr bool deep = false;
  ANISO_PHASE double operator()(int j, int k) const { return data[row(k) * stride + j]; }
};

/// The rows of blocks `first` and `second` of p rows. Each step may be called on an object of its
/// own.
template <class Team>
class BlockPair {
 public:
  /// memory: the stage, and behind it rotation_doubles(p).
  ANISO_PHASE BlockPair(const Team& team, double* memory, int p, int first, int second)
      : team_(team),
        rows_{first * kBlock, second * kBlock},
        count_(p - rows_.second > 0 ? kBlock + least(p - rows_.second, kBlock) : p - rows_.first),
        size_(count_ + count_ % 2),
        stride_(size_ + 1),
        stage_(memory),
        gram_(memory + kStage),
        turn_(gram_ + size_ * stride_),
        planes_(turn_ + size_ * stride_) {}

  /// Sets the Gram matrix of the rows [p, length]; whether some are not orthogonal.
  ANISO_PHASE bool compare(const double* rows, int length) const {
    const RowsOfBlocks factor{rows, length, rows_};
    double* gram = gram_;
    const int stride = stride_;
    multiply(team_, stage_, {count_, count_, length}, true, factor, factor,
             [=](int i, int j, double value) {
               if (i >= j) gram[i * stride + j] = gram[j * stride + i] = value;
             });
    for (int i = team_.thread(); count_ < size_ && i < size_; i += team_.threads()) {
      at(count_, i) = at(i, count_) = 0.0;
    }
    team_.sync();
    const double tolerance = orthogonal_below(length);
    double oblique = 0.0;
    for (int e = team_.thread(); e < size_ * size_; e += team_.threads()) {
      const int i = e / size_, j = e % size_;
      oblique += i < j && is_oblique(at(i, i), at(j, j), at(i, j), tolerance) ? 1.0 : 0.0;
    }
    return team_.sum(oblique) > 0.0;
  }

  /// The rotations that bring the Gram matrix of rows of that length towards a diagonal.
  ANISO_PHASE void diagonalize(int length) const {
    const double tolerance = orthogonal_below(length);
    for (int e = team_.thread(); e < size_ * stride_; e += team_.threads()) {
      turn_[e] = e % stride_ == e / stride_ ? 1.0 : 0.0;
    }
#pragma unroll 1
    for (int sweep = 0; sweep < kInnerSweeps; ++sweep) {
      double turned = 0.0;
#pragma unroll 1
      for (int step = 0; step < size_ - 1; ++step) {
        turned += choose(step, tolerance);
        team_.sync();
        turn_gram(step);
        turn_along(step);
        team_.sync();
      }
      if (!(team_.sum(turned) > 0.0)) return;
    }
  }

  /// The rows [p, length] follow.
  ANISO_PHASE void turn(double* rows, int length) const {
    const BlockRows row = rows_;
    multiply(team_, stage_, {count_, length, count_}, false, RowsOf{turn_, stride_},
             ColumnsOfBlocks{rows, length, row},
             [=](int i, int c, double value) { rows[row(i) * length + c] = value; });
  }

 private:
  struct Plane {
    int i, j;
  };

  static ANISO_PHASE int least(int a, int b) { return a < b ? a : b; }

  ANISO_PHASE double& at(int i, int j) const { return gram_[i * stride_ + j]; }

  static ANISO_PHASE bool is_oblique(double a, double b, double product, double tolerance) {
    return a > kVanishing && b > kVanishing && fabs(product) > tolerance * (sqrt(a) * sqrt(b));
  }

  /// Two rows that meet in a step: all meet once in size_ - 1 steps, every one in each.
  ANISO_PHASE Plane plane(int step, int pair) const {
    const int others = size_ - 1;
    const int a = pair == 0 ? others : (step + pair) % others;
    const int b = (step + others - pair) % others;
    return {least(a, b), a + b - least(a, b)};
  }

  /// The rotations of one step; how many of this thread's turn.
  ANISO_PHASE double choose(int step, double tolerance) const {
    double turned = 0.0;
    for (int pair = team_.thread(); pair < size_ / 2; pair += team_.threads()) {
      const Plane rows = plane(step, pair);
      const double a = at(rows.i, rows.i), b = at(rows.j, rows.j), product = at(rows.i, rows.j);
      double sine = 0.0, half = 0.0;
      if (is_oblique(a, b, product, tolerance)) {
        const double zeta = (b - a) / (2.0 * product);
        const double tangent = copysign(1.0, zeta) / (fabs(zeta) + hypot(1.0, zeta));
        const double cosine = 1.0 / sqrt(1.0 + tangent * tangent);
        sine = cosine * tangent;
        half = sine / (1.0 + cosine);
        at(rows.i, rows.i) -= tangent * product;
        at(rows.j, rows.j) += tangent * product;
        at(rows.i, rows.j) = at(rows.j, rows.i) = 0.0;
        turned += 1.0;
      }
      planes_[2 * pair] = sine;
      planes_[2 * pair + 1] = half;
    }
    return turned;
  }

  /// By an angle of this sine and tangent of its half: rounding of a cosine would add up.
  static ANISO_PHASE void rotate(double& x, double& y, double sine, double half) {
    const double turned = x - sine * (y + half * x);
    y += sine * (x - half * y);
    x = turned;
  }

  /// The Gram matrix from both sides, a thread per two rows and two columns.
  ANISO_PHASE void turn_gram(int step) const {
    const int half = size_ / 2;
#pragma unroll 1
    for (int e = team_.thread(); e < half * half; e += team_.threads()) {
      const int p = e / half, q = e % half;
      if (p >= q) continue;
      const Plane r = plane(step, p), c = plane(step, q);
      double x[2] = {at(r.i, c.i), at(r.i, c.j)}, y[2] = {at(r.j, c.i), at(r.j, c.j)};
      rotate(x[0], y[0], planes_[2 * p], planes_[2 * p + 1]);
      rotate(x[1], y[1], planes_[2 * p], planes_[2 * p + 1]);
      rotate(x[0], x[1], planes_[2 * q], planes_[2 * q + 1]);
      rotate(y[0], y[1], planes_[2 * q], planes_[2 * q + 1]);
      at(r.i, c.i) = at(c.i, r.i) = x[0];
      at(r.i, c.j) = at(c.j, r.i) = x[1];
      at(r.j, c.i) = at(c.i, r.j) = y[0];
      at(r.j, c.j) = at(c.j, r.j) = y[1];
    }
  }

  ANISO_PHASE void turn_along(int step) const {
#pragma unroll 1
    for (int e = team_.thread(); e < size_ / 2 * size_; e += team_.threads()) {
      const int pair = e / size_, c = e % size_;
      const double sine = planes_[2 * pair], tan_half = planes_[2 * pair + 1];
      if (sine == 0.0) continue;
      const Plane rows = plane(step, pair);
      rotate(turn_[rows.i * stride_ + c], turn_[rows.j * stride_ + c], sine, tan_half);
    }
  }

  const Team team_;
  const BlockRows rows_;
  const int count_, size_, stride_;
  double *stage_, *gram_, *turn_;  // the last two [size, stride]
  double* planes_;                 // [size / 2, 2] sine and tangent of half the angle
};

}  // namespace aniso::svd
