// The threads that share one matrix of batched_svd. The algorithm is written once against a team:
// a thread block of a GPU (BlockTeam), or threads of a CPU that take its place in tests (HostTeam).
//
// A team has kWarps warps of lanes() threads; deposit/collected sum over it across one sync().
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/team.hpp"

#if defined(__CUDACC__)
#define ANISO_PHASE __device__
#else
#define ANISO_PHASE inline
#endif

namespace aniso::svd {

/// Rows and columns of the tiles that the fp64 tensor cores take: [8, 4] · [4, 8].
constexpr int kPiece = 8, kPieceDepth = 4;
/// Values per step of a staged factor; a row of it lies where four rows of a warp meet no bank
/// twice.
constexpr int kDepth = 16, kStageStride = kDepth + 4;
/// Sums that may be under way at once.
constexpr int kSlots = 2;

#if defined(__CUDACC__)

/// The thread block. `exchange` holds kSlots · kWarps doubles of shared memory.
template <int kWarpCount>
struct BlockTeam {
  static constexpr int kWarps = kWarpCount, kLanes = 32;
  static constexpr int kThreads = kWarps * kLanes;
  static constexpr int kOwn = kPiece * kPiece / kLanes;  // entries of a piece per lane

  double* exchange;

  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ static constexpr int threads() { return kThreads; }
  __device__ int lane() const { return thread() % kLanes; }
  __device__ static constexpr int lanes() { return kLanes; }
  __device__ int warp() const { return thread() / kLanes; }
  __device__ void sync() const { __syncthreads(); }
  /// A number the compiler cannot know: what follows from it is computed again, not kept.
  __device__ static void hide(int& x) { asm volatile("" : "+r"(x)); }

  __device__ double warp_sum(double x) const {
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    return x;
  }

  __device__ double warp_max(double x) const {
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) x = fmax(x, __shfl_xor_sync(~0u, x, step));
    return x;
  }

  /// sums += a bᵀ for pieces whose rows lie kStageStride apart; a lane has entries lane · kOwn ….
  __device__ void multiply_add(const double* a, const double* b, double (&sums)[kOwn]) const {
    const int at = lane() / kPieceDepth * kStageStride + lane() % kPieceDepth;
    asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+d"(sums[0]), "+d"(sums[1])
        : "d"(a[at]), "d"(b[at]));
  }

  __device__ void deposit(int slot, double x) const {
    const double total = warp_sum(x);
    if (lane() == 0) exchange[slot * kWarps + warp()] = total;
  }
  __device__ double collected(int slot) const {
    double total = 0.0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += exchange[slot * kWarps + w];
    return total;
  }
  __device__ double sum(double x) const {
    deposit(0, x);
    sync();
    const double total = collected(0);
    sync();
    return total;
  }
};

#else

/// What the threads of a HostTeam share.
struct HostShared {
  Team all;
  Team* warps;
  double* exchange;  ///< [kSlots · kWarps]
  double* lanes;     ///< [threads]
};

/// One of `count` threads of a CPU, a multiple of kWarps.
struct HostTeam {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps, kLanes = 1;  // at least
  static constexpr int kOwn = kPiece * kPiece;

  HostShared* shared;
  int index, count;

  int thread() const { return index; }
  int threads() const { return count; }
  int lanes() const { return count / kWarps; }
  int lane() const { return index % lanes(); }
  int warp() const { return index / lanes(); }
  void sync() const { team_wait(shared->all); }
  static void hide(int&) {}

  double warp_sum(double x) const {
    if (lanes() == 1) return x;
    shared->lanes[index] = x;
    team_wait(shared->warps[warp()]);
    double total = 0.0;
    for (int i = 0; i < lanes(); ++i) total += shared->lanes[warp() * lanes() + i];
    team_wait(shared->warps[warp()]);
    return total;
  }

  double warp_max(double x) const {
    if (lanes() == 1) return x;
    shared->lanes[index] = x;
    team_wait(shared->warps[warp()]);
    double most = x;
    for (int i = 0; i < lanes(); ++i) most = fmax(most, shared->lanes[warp() * lanes() + i]);
    team_wait(shared->warps[warp()]);
    return most;
  }

  void multiply_add(const double* a, const double* b, double (&sums)[kOwn]) const {
    const int own = kPiece * kPiece / lanes();
    for (int i = 0; i < own; ++i) {
      const int row = (lane() * own + i) / kPiece, column = (lane() * own + i) % kPiece;
      for (int k = 0; k < kPieceDepth; ++k) {
        sums[i] += a[row * kStageStride + k] * b[column * kStageStride + k];
      }
    }
  }

  void deposit(int slot, double x) const {
    const double total = warp_sum(x);
    if (lane() == 0) shared->exchange[slot * kWarps + warp()] = total;
  }
  double collected(int slot) const {
    double total = 0.0;
    for (int w = 0; w < kWarps; ++w) total += shared->exchange[slot * kWarps + w];
    return total;
  }
  double sum(double x) const {
    deposit(0, x);
    sync();
    const double total = collected(0);
    sync();
    return total;
  }
};

#endif

}  // namespace aniso::svd
