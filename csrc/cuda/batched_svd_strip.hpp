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

#if defined(__CUDACC__)

/// A lane has the entries that the tensor cores give it: of rows `group` and `group` + 8 the two
/// from 2 · `place` on.
template <int kMost, class Team>
class Strip {
 public:
  __device__ Strip(const Team& team, double* matrix, int stride, int row)
      : group_(team.lane() / 4),
        place_(team.lane() % 4),
        stride_(stride),
        row_(row),
        own_(matrix + (row + group_) * stride + 2 * place_) {}

  /// The rows' part of A - V Wᵀ - W Vᵀ.
  __device__ void take_factors(const double* v, const double* w) {
#pragma unroll
    for (int a = 0; a < 8; ++a) {
      const int at = panel_at<kMost>(row_ + group_ + a % 2 * 8, place_ + a / 2 * 4);
      v_[a] = -v[at];
      w_[a] = -w[at];
    }
  }

  /// Reads columns `column`.. ahead of their turn.
  __device__ void fetch(int column) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      ahead_[half] = *reinterpret_cast<const double2*>(own_ + half * 8 * stride_ + column);
    }
  }

  /// The columns read last are at hand.
  __device__ void next() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      entries_[2 * half] = ahead_[half].x;
      entries_[2 * half + 1] = ahead_[half].y;
    }
  }

  __device__ void update(const double* v, const double* w, int column) {
    double factors[4];
    take_columns(w, column, factors);
    multiply_add(v_, factors, entries_);
    take_columns(v, column, factors);
    multiply_add(w_, factors, entries_);
  }

  __device__ void put(int column) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *reinterpret_cast<double2*>(own_ + half * 8 * stride_ + column) = {entries_[2 * half],
                                                                         entries_[2 * half + 1]};
    }
  }

  /// product += entries · u. A lane's entries are a factor as they stand once the columns are taken
  /// in another order: those at even places, then those at odd ones.
  __device__ void multiply(const double* u, int column) {
    const double left[4] = {entries_[0], entries_[2], entries_[1], entries_[3]};
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int row = column + 2 * place_, k = side * 8 + group_;
      const double right[2] = {u[panel_at<kMost>(row, k)], u[panel_at<kMost>(row + 1, k)]};
      multiply_add(left, right, product_[side]);
    }
  }

  /// Into rows of y [·, kBand].
  __device__ void put_product(double* y) const {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = row_ + group_ + e / 2 * 8, k = side * 8 + 2 * place_ + e % 2;
        y[i * kBand + k] = product_[side][e];
      }
    }
  }

 private:
  __device__ void take_columns(const double* panel, int row, double (&factors)[4]) const {
#pragma unroll
    for (int b = 0; b < 4; ++b) factors[b] = panel[panel_at<kMost>(row + group_, place_ + b * 4)];
  }

  const int group_, place_, stride_, row_;
  double* own_;
  double v_[8], w_[8], entries_[4], product_[2][4] = {};
  double2 ahead_[2];
};

#else

/// A lane has whole rows, kBand of them shared among the lanes of the warp.
template <int kMost, class Team>
class Strip {
 public:
  Strip(const Team& team, double* matrix, int stride, int row)
      : rows_(kBand / team.lanes()),
        row_(row + team.lane() * rows_),
        stride_(stride),
        own_(matrix + row_ * stride) {}

  void take_factors(const double*, const double*) {}

  void fetch(int column) {
    for (int i = 0; i < rows_; ++i)
      memcpy(ahead_[i], own_ + i * stride_ + column, sizeof(ahead_[i]));
  }
  void next() { memcpy(entries_, ahead_, sizeof(ahead_)); }
  void put(int column) const {
    for (int i = 0; i < rows_; ++i) {
      memcpy(own_ + i * stride_ + column, entries_[i], sizeof(entries_[i]));
    }
  }

  void update(const double* v, const double* w, int column) {
    for (int i = 0; i < rows_; ++i) {
      for (int j = 0; j < kPieceColumns; ++j) {
        for (int k = 0; k < kBand; ++k) {
          const int here = panel_at<kMost>(row_ + i, k), there = panel_at<kMost>(column + j, k);
          entries_[i][j] -= v[here] * w[there] + w[here] * v[there];
        }
      }
    }
  }

  void multiply(const double* u, int column) {
    for (int i = 0; i < rows_; ++i) {
      for (int j = 0; j < kPieceColumns; ++j) {
        for (int k = 0; k < kBand; ++k) {
          product_[i][k] += entries_[i][j] * u[panel_at<kMost>(column + j, k)];
        }
      }
    }
  }

  void put_product(double* y) const {
    for (int i = 0; i < rows_; ++i)
      memcpy(y + (row_ + i) * kBand, product_[i], sizeof(product_[i]));
  }

 private:
  const int rows_, row_, stride_;
  double* own_;
  double ahead_[kBand][kPieceColumns], entries_[kBand][kPieceColumns];
  double product_[kBand][kBand] = {};
};

#endif

}  // namespace aniso::svd
