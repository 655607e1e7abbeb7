// What one call of group_moments walks over and adds to: the same layout on every device.
#pragma once

#include <cstdint>

namespace aniso {

/// Rows in the order of their groups: run s is the rows order[begin[s]], …, order[end[s] − 1], and
/// goes to group slot[s]. No two runs have the same slot, so threads never meet in an output.
struct RunsView {
  const int64_t* order;
  int64_t rows;  ///< length of `order`
  const int64_t* begin;
  const int64_t* end;
  const int64_t* slot;
  int64_t count;  ///< length of `begin`, `end` and `slot`
};

/// Outputs of G groups, contiguous; every kernel adds to them, none overwrites.
///
/// Either sums and unit_sums (each may be null), the additive state; or products and totals: what
/// cosines within and between groups need of Σx and Σx̂, in O(G) memory where those are O(G d).
struct GroupMomentsView {
  int64_t* counts;       ///< [G]: rows with a direction
  double* square_norms;  ///< [G]: Σ‖x‖²
  double* sums;          ///< [G, d] or null: Σx
  double* unit_sums;     ///< [G, d] or null: Σx̂
  double* products;      ///< [G, 3] or null: ‖ŝ‖², ŝ·m, ‖m‖² of ŝ = Σx̂ and m = scale·Σx
  double* totals;        ///< [writers, d] or null: Σx̂ of all runs, one row per thread or block
  int64_t writers;       ///< threads or blocks that may work at once where there are totals
  double scale;          ///< power of two that keeps the squares of m in range
};

}  // namespace aniso
