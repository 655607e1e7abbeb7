// kBand rows of a symmetric matrix on their way through one warp, kPieceColumns columns at a time:
// brought up to date and multiplied without leaving its registers.
#pragma once

#include "cuda/batched_svd_team.hpp"

namespace aniso::svd {

/// Rows of the band reduction's panels, and half the band's width.
constexpr int kBand = 16;

/// Where entry k of row i of a panel [kMost, kBand] lies: the 4 columns that the tensor cores take
/// at a time side by side, so that rows of a warp meet no bank twice.
template <int kMost>
ANISO_PHASE int panel_at(int i, int k) {
  return (k / 4 * kMost + i) * 4 + k % 4;
}

/// Two neighbours that are read and written at once.
struct alignas(16) Two {
  double first, second;
};

/// A lane has the entries that a product's sums give it.
template <int kMost, class Team>
class Strip {
 public:
  ANISO_PHASE Strip(const Team& team, double* matrix, int stride, int row)
      : team_(team), stride_(stride), row_(row), matrix_(matrix) {}

  /// The rows' part of A - V Wᵀ - W Vᵀ.
  ANISO_PHASE void take_factors(const double* v, const double* w) {
#pragma unroll
    for (int l = 0; l < team_.held(); ++l) {
#pragma unroll
      for (int a = 0; a < 8; ++a) {
        const int lane = team_.held_lane(l);
        const int at = panel_at<kMost>(row_ + Held::left_row(lane, a), Held::left_depth(lane, a));
        v_[l][a] = -v[at];
        w_[l][a] = -w[at];
      }
    }
  }

  /// Reads columns `column`.. ahead of their turn.
  ANISO_PHASE void fetch(int column) {
#pragma unroll
    for (int l = 0; l < team_.held(); ++l) {
#pragma unroll
      for (int half = 0; half < 2; ++half) ahead_[l][half] = *two(l, half, column);
    }
  }

  /// The columns read last are at hand.
  ANISO_PHASE void next() {
#pragma unroll
    for (int l = 0; l < team_.held(); ++l) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        entries_[l][2 * half] = ahead_[l][half].first;
        entries_[l][2 * half + 1] = ahead_[l][half].second;
      }
    }
  }

  ANISO_PHASE void update(const double* v, const double* w, int column) {
    double factors[Team::kHeld][4];
    take_columns(w, column, factors);
    team_.template multiply_add<4>(v_, factors, entries_);
    take_columns(v, column, factors);
    team_.template multiply_add<4>(w_, factors, entries_);
  }

  ANISO_PHASE void put(int column) const {
#pragma unroll
    for (int l = 0; l < team_.held(); ++l) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        *two(l, half, column) = {entries_[l][2 * half], entries_[l][2 * half + 1]};
      }
    }
  }

  /// product += entries · u. A lane's entries are a factor as they stand once the columns are taken
  /// in another order: those at even places, then those at odd ones.
  ANISO_PHASE void multiply(const double* u, int column) {
    double left[Team::kHeld][4], right[Team::kHeld][2];
#pragma unroll
    for (int l = 0; l < team_.held(); ++l) {
#pragma unroll
      for (int i = 0; i < 4; ++i) left[l][i] = entries_[l][i % 2 * 2 + i / 2];
    }
#pragma unroll
    for (int side = 0; side < 2; ++side) {
#pragma unroll
      for (int l = 0; l < team_.held(); ++l) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int lane = team_.held_lane(l), k = side * 8 + Held::right_row(lane);
          right[l][i] = u[panel_at<kMost>(column + Held::sum_column(lane, i), k)];
        }
      }
      team_.template multiply_add<2>(left, right, product_[side]);
    }
  }

  /// Into rows of y [·, kBand].
  ANISO_PHASE void put_product(double* y) const {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
#pragma unroll
      for (int l = 0; l < team_.held(); ++l) {
#pragma unroll
        for (int e = 0; e < kSums; ++e) {
          const int lane = team_.held_lane(l), i = row_ + Held::sum_row(lane, e);
          y[i * kBand + side * 8 + Held::sum_column(lane, e)] = product_[side][l][e];
        }
      }
    }
  }

 private:
  /// A lane's entries of a half of the rows.
  ANISO_PHASE Two* two(int l, int half, int column) const {
    const int lane = team_.held_lane(l), row = row_ + Held::sum_row(lane, 2 * half);
    return reinterpret_cast<Two*>(matrix_ + row * stride_ + column + Held::sum_column(lane, 0));
  }

  ANISO_PHASE void take_columns(const double* panel, int row,
                                double (&factors)[Team::kHeld][4]) const {
#pragma unroll
    for (int l = 0; l < team_.held(); ++l) {
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const int lane = team_.held_lane(l);
        factors[l][b] =
            panel[panel_at<kMost>(row + Held::right_row(lane), Held::right_depth(lane, b))];
      }
    }
  }

  const Team team_;
  const int stride_, row_;
  double* matrix_;
  double v_[Team::kHeld][8], w_[Team::kHeld][8], entries_[Team::kHeld][4];
  double product_[2][Team::kHeld][kSums] = {};
  Two ahead_[Team::kHeld][2];
};

}  // namespace aniso::svd
