// Norms of products that are never formed, by random probes: E‖R ω‖² = ‖R‖_F² for ω of random signs
// (Hutchinson 1990).
#pragma once

#include "cuda/batched_svd_job.hpp"

namespace aniso::svd {

/// kProbes signs for each of the `count` rows in `order`; images: [kProbes, p].
template <class Team>
class Probes {
 public:
  ANISO_PHASE Probes(const Team& team, const int* order, int count, double* images)
      : team_(team), order_(order), count_(count), images_(images) {}

  /// out [kProbes, length] = Σ_j ω_j rows_j, each row times its weight where there are weights.
  ANISO_PHASE void combine(const double* rows, int length, const double* weights,
                           double* out) const {
#pragma unroll 1
    for (int c = team_.thread(); c < length; c += team_.threads()) {
      double sums[kProbes] = {};
#pragma unroll 1
      for (int j = 0; j < count_; ++j) {
        const int row = order_[j];
        const double weight = weights == nullptr ? 1.0 : weights[row];
        const double entry = rows[int64_t{row} * length + c] * weight;
#pragma unroll
        for (int probe = 0; probe < kProbes; ++probe) sums[probe] += entry * probe_sign(j, probe);
      }
#pragma unroll
      for (int probe = 0; probe < kProbes; ++probe) out[int64_t{probe} * length + c] = sums[probe];
    }
    team_.sync();
  }

  /// images [kProbes, count] = probes rowsᵀ.
  template <class Rows>
  ANISO_PHASE void set_images(const Rows& rows, int count, int length, const double* probes) const {
#pragma unroll 1
    for (int j = team_.warp(); j < count; j += Team::kWarps) {
      double sums[kProbes] = {};
#pragma unroll 1
      for (int c = team_.lane(); c < length; c += team_.lanes()) {
        const double entry = rows(j, c);
#pragma unroll
        for (int probe = 0; probe < kProbes; ++probe) {
          sums[probe] += entry * probes[int64_t{probe} * length + c];
        }
      }
#pragma unroll
      for (int probe = 0; probe < kProbes; ++probe) {
        const double total = team_.warp_sum(sums[probe]);
        if (team_.lane() == 0) images_[probe * count + j] = total;
      }
    }
    team_.sync();
  }

  /// ‖Q Qᵀ - I‖_F of the rows Q [·, length]; room: [kProbes, length].
  ANISO_PHASE double defect(const double* rows, int length, double* room) const {
    combine(rows, length, nullptr, room);
    set_images(ChosenRows{rows, length, order_}, count_, length, room);
    double total = 0.0;
    for (int i = team_.thread(); i < kProbes * count_; i += team_.threads()) {
      const double rest = images_[i] - probe_sign(i % count_, i / count_);
      total += rest * rest;
    }
    return sqrt(team_.sum(total) / kProbes);
  }

  /// ‖others - scale · images‖_F for others [kProbes, length].
  ANISO_PHASE double distance(const double* others, int length, double scale) const {
    double total = 0.0;
    for (int i = team_.thread(); i < kProbes * length; i += team_.threads()) {
      const double rest = others[i] - scale * images_[i];
      total += rest * rest;
    }
    return sqrt(team_.sum(total) / kProbes);
  }

 private:
  const Team team_;
  const int* order_;
  const int count_;
  double* images_;
};

}  // namespace aniso::svd
