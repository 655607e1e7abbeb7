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
// A phase with registers of its own.
#define ANISO_APART __device__ __noinline__
#define ANISO_ANYWHERE __host__ __device__
#else
#define ANISO_PHASE inline
#define ANISO_APART inline
#define ANISO_ANYWHERE
#endif

namespace aniso::svd {

/// The product that the fp64 tensor cores take at a time: [16, 8] · [8, 8].
constexpr int kPieceRows = 16, kPieceColumns = 8, kPieceDepth = 8;
/// Values per step of a staged factor; a row of it lies where four rows of a warp meet no bank
/// twice.
constexpr int kDepth = 16;
constexpr int kStageStride = kDepth + 4;
/// Sums that may be under way at once.
constexpr int kSlots = 2;

#if defined(__CUDACC__)

/// sums += a bᵀ for rows of a: a lane has of a [16, 4 · kSteps] the rows lane / 4 and 8 below, of
/// b [8, 4 · kSteps] the row lane / 4, every fourth column from lane % 4 on; of the sums those rows
/// of a, and columns 2 · (lane % 4) and the next.
template <int kSteps>
__device__ inline void multiply_add(const double (&a)[2 * kSteps], const double (&b)[kSteps],
                                    double (&sums)[4]) {
#if __CUDA_ARCH__ >= 900
  if constexpr (kSteps == 4) {
    asm("mma.sync.aligned.m16n8k16.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7, %8, %9, %10, %11}, {%12, %13, %14, %15}, {%0, %1, %2, %3};"
        : "+d"(sums[0]), "+d"(sums[1]), "+d"(sums[2]), "+d"(sums[3])
        : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(a[4]), "d"(a[5]), "d"(a[6]), "d"(a[7]),
          "d"(b[0]), "d"(b[1]), "d"(b[2]), "d"(b[3]));
  } else {
    static_assert(kSteps == 2, "a shape of the tensor cores");
    asm("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+d"(sums[0]), "+d"(sums[1]), "+d"(sums[2]), "+d"(sums[3])
        : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
  }
#else
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
          : "+d"(sums[2 * half]), "+d"(sums[2 * half + 1])
          : "d"(a[2 * step + half]), "d"(b[step]));
    }
  }
#endif
}

/// The thread block. Its shared memory begins with room for the sums, kSlots · kWarps doubles.
template <int kWarpCount>
struct BlockTeam {
  static constexpr int kWarps = kWarpCount, kLanes = 32;
  static constexpr int kThreads = kWarps * kLanes;
  static constexpr int kOwn = kPieceRows * kPieceColumns / kLanes;  // entries of a piece per lane

  /// The memory that all threads have in common, 16-byte aligned.
  __device__ double* memory() const { return exchange() + kSlots * kWarps; }
  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ static constexpr int threads() { return kThreads; }
  __device__ int lane() const { return thread() % kLanes; }
  __device__ static constexpr int lanes() { return kLanes; }
  __device__ int warp() const { return thread() / kLanes; }
  __device__ void sync() const { __syncthreads(); }
  __device__ void warp_sync() const { __syncwarp(); }

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

  /// This lane's share of a piece's left factor, whose rows lie kStageStride apart.
  struct Left {
    double values[kPieceDepth / 2];
  };
  __device__ Left take_left(const double* a) const {
    Left left;
    const double* at = a + lane() / 4 * kStageStride + lane() % 4;
#pragma unroll
    for (int i = 0; i < kPieceDepth / 2; ++i)
      left.values[i] = at[i % 2 * 8 * kStageStride + i / 2 * 4];
    return left;
  }

  /// sums += left bᵀ.
  __device__ void multiply_add(const Left& left, const double* b, double (&sums)[kOwn]) const {
    double right[kPieceDepth / 4];
    const double* at = b + lane() / 4 * kStageStride + lane() % 4;
#pragma unroll
    for (int i = 0; i < kPieceDepth / 4; ++i) right[i] = at[i * 4];
    svd::multiply_add(left.values, right, sums);
  }

  /// Where in a piece this lane's entry `own` lies.
  __device__ int piece_row(int own) const { return lane() / 4 + own / 2 * 8; }
  __device__ int piece_column(int own) const { return lane() % 4 * 2 + own % 2; }

  __device__ void deposit(int slot, double x) const {
    const double total = warp_sum(x);
    if (lane() == 0) exchange()[slot * kWarps + warp()] = total;
  }
  __device__ double collected(int slot) const {
    double total = 0.0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += exchange()[slot * kWarps + w];
    return total;
  }
  __device__ double sum(double x) const {
    deposit(0, x);
    sync();
    const double total = collected(0);
    sync();
    return total;
  }

 private:
  static __device__ double* exchange() {
    extern __shared__ __align__(16) double shared_memory[];
    return shared_memory;
  }
};

#else

/// What the threads of a HostTeam share.
struct HostShared {
  Team all;
  Team* warps;
  double* exchange;  ///< [kSlots · kWarps]
  double* lanes;     ///< [threads]
  double* memory;    ///< of the matrix at hand
};

/// One of `count` threads of a CPU, a multiple of kWarps.
struct HostTeam {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps, kLanes = 1;  // at least
  static constexpr int kOwn = kPieceRows * kPieceColumns;

  HostShared* shared;
  int index, count;

  double* memory() const { return shared->memory; }
  int thread() const { return index; }
  int threads() const { return count; }
  int lanes() const { return count / kWarps; }
  int lane() const { return index % lanes(); }
  int warp() const { return index / lanes(); }
  void sync() const { team_wait(shared->all); }
  void warp_sync() const {
    if (lanes() > 1) team_wait(shared->warps[warp()]);
  }

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

  using Left = const double*;
  Left take_left(const double* a) const { return a; }
  void multiply_add(const double* a, const double* b, double (&sums)[kOwn]) const {
    for (int own = 0; own < kOwn / lanes(); ++own) {
      const double *left = a + piece_row(own) * kStageStride,
                   *right = b + piece_column(own) * kStageStride;
      for (int k = 0; k < kPieceDepth; ++k) sums[own] += left[k] * right[k];
    }
  }
  int piece_row(int own) const { return (lane() * (kOwn / lanes()) + own) / kPieceColumns; }
  int piece_column(int own) const { return own % kPieceColumns; }

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
