// What one thread of row_moments does; row_moments.cu launches it.
//
// One team of warps per row. A thread owns the same columns of every row its team sees, so float64
// sums stay in its registers; rows travel through a ring of asynchronous copies in shared memory.
// While the rows of step i are added, the norms of step i + 1 are reduced: one barrier per step.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "cuda/row_moments_row.cuh"

namespace aniso::cuda::moments {

template <class Raw>
__device__ void copy_async(Raw* to, const Raw* from) {
  if constexpr (sizeof(Raw) >= 4) {
    __pipeline_memcpy_async(to, from, sizeof(Raw));
  } else {
    *to = *from;  // the hardware copies no fewer than 4 bytes
  }
}

/// One thread of the team that shares a row; every method is called by all threads of the block.
template <class S, bool kGiven>
struct Worker {
  using Raw = typename S::Raw;
  using Real = typename S::Real;
  static constexpr int kRows = S::kRows;
  static constexpr int kPair = kRows > 1 ? 2 : 1;  // rows added together, as registers allow

  const Job& job;
  BlockSpace<S>& block;
  WarpSpace<S>& own;
  int lane = threadIdx.x % kWarp;
  int warp = threadIdx.x / kWarp % job.team_warps;
  int team = S::kWide ? 0 : threadIdx.x / kWarp / job.team_warps;  // wide: one per block
  double sums[S::kCols][S::kHome] = {};
  typename S::Peak peak[S::kVecs] = {};  // max |x_k|, as it was read

  __device__ Worker(const Job& the_job, unsigned char* shared)
      : job(the_job),
        block(*reinterpret_cast<BlockSpace<S>*>(shared)),
        own(reinterpret_cast<WarpSpace<S>*>(shared + sizeof(block))[threadIdx.x / kWarp]) {
    Raw* ring = own.ring[0][0][0];
    for (int i = lane; i < S::kStages * kRows * S::kVecs * kWarp; i += kWarp) ring[i] = Raw{};
    for (auto& squares : own.squares) squares[lane] = 0.0;
    if (lane >= kTally) return;
    for (auto& tally : own.tally) tally[lane] = lane == 3 ? HUGE_VAL : 0.0;
  }

  __device__ int64_t block_row(int step) const {
    return (int64_t{step} * gridDim.x + blockIdx.x) * job.teams * kRows;
  }
  __device__ int64_t team_row(int step) const { return block_row(step) + team * kRows; }
  __device__ int64_t lane_row(int step) const { return team_row(step) + lane / S::kLanesPerRow; }
  __device__ int64_t first_column() const { return blockIdx.y * job.tile; }
  __device__ int width() const {
    return static_cast<int>(min(job.tile, job.rows.d - first_column()));
  }
  /// Where vector c of this thread begins, counted from first_column().
  __device__ int column(int c) const {
    return ((c * job.team_warps + warp) * kWarp + lane) * S::kVec;
  }
  __device__ Raw& slot(int step, int r, int c) const {
    return own.ring[step % S::kStages][r][c][lane];
  }
  __device__ double (&exchange(int step, int scale) const)[kRows][kMaxWarps] {
    return block.exchange[step % 2][scale];
  }
  __device__ void barrier() const {
    if (!kGiven && job.team_warps > 1) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  __device__ void fetch(int step) const {
    const int64_t row = team_row(step);
    const int rows = static_cast<int>(min(int64_t{kRows}, job.rows.n - row));
    const auto* from = static_cast<const typename S::Bits*>(job.rows.data) +
                       row * job.rows.row_stride + first_column();
#pragma unroll 1
    for (int r = 0; r < rows; ++r, from += job.rows.row_stride) {
#pragma unroll 2
      for (int c = 0; c < S::kVecs; ++c) {
        if (column(c) >= width()) break;
        copy_async(&slot(step, r, c), reinterpret_cast<const Raw*>(from + column(c)));
      }
    }
    __pipeline_commit();
  }

  __device__ void measure(int step) const {
    double squared[S::kScales][kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      double own[S::kScales] = {};
#pragma unroll 2
      for (int c = 0; c < S::kVecs; ++c) {
        const Raw raw = slot(step, r, c);
#pragma unroll
        for (int e = 0; e < S::kVec; ++e)
          add_squares<S>(own, S::value(pick<typename S::Bits>(raw, e)));
      }
      for (int s = 0; s < S::kScales; ++s) squared[s][r] = own[s];
    }
#pragma unroll
    for (int s = 0; s < S::kScales; ++s) {
      const double total = transpose_sum(squared[s], lane);
      if (lane % S::kLanesPerRow == 0) {
        exchange(step, s)[lane / S::kLanesPerRow][team * job.team_warps + warp] = total;
      }
    }
  }

  /// Lane l returns the sum over the team's warps of row l / kLanesPerRow.
  __device__ double team_total(int step, int scale) const {
    double total = 0.0;
#pragma unroll 1
    for (int w = lane % S::kLanesPerRow; w < job.team_warps; w += S::kLanesPerRow) {
      total += exchange(step, scale)[lane / S::kLanesPerRow][team * job.team_warps + w];
    }
    return warp_sum(total, S::kLanesPerRow);
  }

  /// Lane l returns the note of row l / kLanesPerRow.
  __device__ RowNote settle(int step, int status) const {
    if constexpr (kGiven) {
      return status == kAbsent ? RowNote{0.0, 1.0, 0.0, kAbsent} : job.notes[lane_row(step)];
    } else {
      double totals[S::kScales];
#pragma unroll
      for (int s = 0; s < S::kScales; ++s) totals[s] = team_total(step, s);
      return describe(status, totals);
    }
  }

  __device__ void count(const RowNote& note) const {
    if (warp != 0 || blockIdx.y != 0 || lane % S::kLanesPerRow != 0 || note.status == kAbsent)
      return;
    double (&tally)[kTally] = own.tally[lane / S::kLanesPerRow];
    if (note.status != kKept) tally[5 + note.status] += 1.0;
    if (note.status > kZero) return;
    const double square = note.norm * note.norm;
    tally[0] += note.norm, tally[1] += square, tally[2] += square * square;
    tally[3] = fmin(tally[3], note.norm), tally[4] = fmax(tally[4], note.norm);
    tally[5] += 1.0;
  }

  /// Where sum q of a column lives: in a register, or in shared memory for squares of wide rows.
  __device__ double& home(int column, int q) {
    if constexpr (S::kWide) {
      if (q >= S::kHome) return own.squares[2 * column + q - 2][lane];
    }
    return sums[column][q % S::kHome];
  }

  __device__ void add(int column, const Real (&values)[kPair], const double (&inverse)[kPair],
                      const double (&scale)[kPair]) {
    double x_sum = home(column, 0), unit_sum = home(column, 1);
    double x_square = home(column, 2), unit_square = home(column, 3);
#pragma unroll
    for (int r = 0; r < kPair; ++r) {
      const double x = values[r];
      const double unit = (S::kScales == 3 ? x * scale[r] : x) * inverse[r];
      x_sum += x, unit_sum += unit;
      x_square = fma(x, x, x_square), unit_square = fma(unit, unit, unit_square);
    }
    home(column, 0) = x_sum, home(column, 1) = unit_sum;
    home(column, 2) = x_square, home(column, 3) = unit_square;
  }

  /// Adds kPair rows; a row that is not kept reads as zeros, so that no NaN enters a sum.
  __device__ void absorb(int step, int first, const RowNote& note) {
    double inverse[kPair], scale[kPair];
    bool kept[kPair];
#pragma unroll
    for (int r = 0; r < kPair; ++r) {
      const int source = (first + r) * S::kLanesPerRow;
      inverse[r] = __shfl_sync(~0u, note.inverse, source);
      scale[r] = __shfl_sync(~0u, note.scale, source);
      kept[r] = __shfl_sync(~0u, note.status, source) <= kZero;
    }
#pragma unroll
    for (int c = 0; c < S::kVecs; ++c) {
      Raw raw[kPair];
#pragma unroll
      for (int r = 0; r < kPair; ++r) raw[r] = kept[r] ? slot(step, first + r, c) : Raw{};
#pragma unroll
      for (int r = 0; r < kPair; ++r) raise<S>(peak[c], raw[r]);
#pragma unroll
      for (int e = 0; e < S::kVec; ++e) {
        Real values[kPair];
#pragma unroll
        for (int r = 0; r < kPair; ++r) values[r] = S::value(pick<typename S::Bits>(raw[r], e));
        add(c * S::kVec + e, values, inverse, scale);
      }
    }
  }

  __device__ void run() {
    __syncwarp();  // the tally was cleared by other lanes
    for (int step = 0; step < S::kStages; ++step) fetch(step);
    int next = peek_status(job, lane_row(0));
    __pipeline_wait_prior(S::kStages - 1);
    if constexpr (!kGiven) measure(0);
    barrier();
    for (int step = 0; block_row(step) < job.rows.n; ++step) {
      const int status = next;
      next = peek_status(job, lane_row(step + 1));  // a step ahead, to hide the latency
      __pipeline_wait_prior(S::kStages - 2);
      if constexpr (!kGiven) measure(step + 1);
      const RowNote note = settle(step, status);
      count(note);
#pragma unroll 1
      for (int r = 0; r < kRows; r += kPair) absorb(step, r, note);
      fetch(step + S::kStages);
      barrier();
    }
    write();
  }

  __device__ void write() {
    const int64_t d = job.rows.d;
    double* out = job.partials + (int64_t{blockIdx.x} * job.teams + team) * (5 * d + kTally);
#pragma unroll
    for (int i = 0; i < S::kCols; ++i) {
      if (column(i / S::kVec) >= width()) break;
      const int64_t k = first_column() + column(i / S::kVec) + i % S::kVec;
      for (int q = 0; q < 4; ++q) out[q * d + k] = home(i, q);
      out[4 * d + k] = fabs(S::value(pick<typename S::Bits>(peak[i / S::kVec], i % S::kVec)));
    }
    __syncwarp();
    if (warp != 0 || blockIdx.y != 0 || lane >= kTally) return;
    double total = own.tally[0][lane];
    for (int r = 1; r < kRows; ++r) {
      total = combine(5 * d + lane, d, total, own.tally[r][lane]);
    }
    out[5 * d + lane] = total;
  }
};

}  // namespace aniso::cuda::moments
