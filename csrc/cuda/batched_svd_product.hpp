// Products of float64 matrices by one team, in tiles that are staged where all its threads see
// them.
#pragma once

#include <utility>

#include "cuda/batched_svd_team.hpp"

namespace aniso::svd {

constexpr int kTile = 64;
/// Doubles of the stage: kDepth columns of a tile of both factors.
constexpr int kStage = 2 * kTile * kStageStride;

/// Sizes of a product: rows × depth times depth × columns.
struct Extent {
  int rows, columns, depth;
};

/// Rows of a matrix in memory as a factor.
struct RowsOf {
  const double* data;
  int stride;
  static constexpr bool deep = true;
  ANISO_PHASE double operator()(int i, int k) const { return data[i * stride + k]; }
};

/// Columns of a matrix in memory as a factor.
struct ColumnsOf {
  const double* data;
  int stride;
  static constexpr bool deep = false;
  ANISO_PHASE double operator()(int j, int k) const { return data[k * stride + j]; }
};

/// How a warp shares in a tile: one row of pieces, and as many columns as are left.
template <class Team>
struct Share {
  static constexpr int kRowGroups = kTile / kPieceRows;
  static constexpr int kColumns = kRowGroups * (kTile / kPieceColumns) / Team::kWarps;

  static ANISO_PHASE int row(const Team& team) { return team.warp() % kRowGroups * kPieceRows; }
  static ANISO_PHASE int column(const Team& team) {
    return team.warp() / kRowGroups * kColumns * kPieceColumns;
  }
};

/// The values of both factors that a thread carries to the stage, a step ahead of the sums.
template <class Team, class Left, class Right>
struct Carrier {
  static constexpr int kCount = (kTile * kDepth + Team::kThreads - 1) / Team::kThreads;

  const Left& left;
  const Right& right;
  decltype(std::declval<Left>()(0, 0)) left_values[kCount];
  decltype(std::declval<Right>()(0, 0)) right_values[kCount];

  /// Entry e of a tile: neighbouring threads read neighbouring values.
  static ANISO_PHASE int index_of(int e, bool deep) { return deep ? e / kDepth : e % kTile; }
  static ANISO_PHASE int depth_of(int e, bool deep) { return deep ? e % kDepth : e / kTile; }

  ANISO_PHASE void fetch(const Team& team, const Extent& size, int row, int column, int depth) {
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      const int e = team.thread() + c * team.threads();
      if (e >= kTile * kDepth) break;
      const int i = row + index_of(e, left.deep), k = depth + depth_of(e, left.deep);
      left_values[c] = i < size.rows && k < size.depth ? left(i, k) : 0;
      const int j = column + index_of(e, right.deep), l = depth + depth_of(e, right.deep);
      right_values[c] = j < size.columns && l < size.depth ? right(j, l) : 0;
    }
  }

  ANISO_PHASE void put(const Team& team, double* stage) const {
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      const int e = team.thread() + c * team.threads();
      if (e >= kTile * kDepth) break;
      stage[index_of(e, left.deep) * kStageStride + depth_of(e, left.deep)] = left_values[c];
      stage[(kTile + index_of(e, right.deep)) * kStageStride + depth_of(e, right.deep)] =
          right_values[c];
    }
  }
};

/// sums += a bᵀ for pieces in the stage, kPieceDepth deep: a above kColumns of b.
template <int kColumns, class Team>
ANISO_PHASE void multiply_pieces(const Team& team, const double* a, const double* b,
                                 double (&sums)[kColumns][Team::kHeld][kSums]) {
  constexpr int kSteps = kPieceDepth / 4;
  double left[Team::kHeld][2 * kSteps], right[Team::kHeld][kSteps];
#pragma unroll
  for (int l = 0; l < team.held(); ++l) {
#pragma unroll
    for (int i = 0; i < 2 * kSteps; ++i) {
      const int lane = team.held_lane(l);
      left[l][i] = a[Held::left_row(lane, i) * kStageStride + Held::left_depth(lane, i)];
    }
  }
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
#pragma unroll
    for (int l = 0; l < team.held(); ++l) {
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        const int lane = team.held_lane(l), row = c * kPieceColumns + Held::right_row(lane);
        right[l][i] = b[row * kStageStride + Held::right_depth(lane, i)];
      }
    }
    team.template multiply_add<kSteps>(left, right, sums[c]);
  }
}

/// store(i, j, Σ_k left(i, k) right(j, k)) for the tile at (row, column). A factor's `deep` says
/// that its values lie side by side along k.
template <class Team, class Left, class Right, class Store>
ANISO_PHASE void multiply_tile(const Team& team, double* stage, const Extent& size, int row,
                               int column, const Left& left, const Right& right,
                               const Store& store) {
  using Part = Share<Team>;
  double sums[Part::kColumns][Team::kHeld][kSums] = {};
  Carrier<Team, Left, Right> carrier{left, right, {}, {}};
  const int own_row = Part::row(team), own_column = Part::column(team);
  const bool idle = row + own_row >= size.rows || column + own_column >= size.columns;
  carrier.fetch(team, size, row, column, 0);
  for (int depth = 0; depth < size.depth; depth += kDepth) {
    carrier.put(team, stage);
    team.sync();
    if (depth + kDepth < size.depth) carrier.fetch(team, size, row, column, depth + kDepth);
    const double *a = stage + own_row * kStageStride,
                 *b = stage + (kTile + own_column) * kStageStride;
#pragma unroll 1
    for (int k = 0; k < kDepth && !idle; k += kPieceDepth) {
      multiply_pieces<Part::kColumns>(team, a + k, b + k, sums);
    }
    team.sync();
  }
#pragma unroll
  for (int c = 0; c < Part::kColumns; ++c) {
#pragma unroll
    for (int l = 0; l < team.held(); ++l) {
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
        const int lane = team.held_lane(l), i = row + own_row + Held::sum_row(lane, s);
        const int j = column + own_column + c * kPieceColumns + Held::sum_column(lane, s);
        if (i < size.rows && j < size.columns) store(i, j, sums[c][l][s]);
      }
    }
  }
}

/// All tiles; `lower`: those that reach the diagonal or below it.
template <class Team, class Left, class Right, class Store>
ANISO_PHASE void multiply(const Team& team, double* stage, const Extent& size, bool lower,
                          const Left& left, const Right& right, const Store& store) {
  for (int row = 0; row < size.rows; row += kTile) {
    const int end = lower ? row + 1 : size.columns;
    for (int column = 0; column < end; column += kTile) {
      multiply_tile(team, stage, size, row, column, left, right, store);
    }
  }
  team.sync();
}

}  // namespace aniso::svd
