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

/// What a lane of a warp holds of a [16, ·], b [8, ·] and sums [16, 8], entry by entry.
struct Held {
  static ANISO_PHASE int left_row(int lane, int i) { return lane / 4 + i % 2 * 8; }
  static ANISO_PHASE int left_depth(int lane, int i) { return lane % 4 + i / 2 * 4; }
  static ANISO_PHASE int right_row(int lane) { return lane / 4; }
  static ANISO_PHASE int right_depth(int lane, int i) { return lane % 4 + i * 4; }
  static ANISO_PHASE int sum_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
  static ANISO_PHASE int sum_column(int lane, int i) { return lane % 4 * 2 + i % 2; }
};
constexpr int kSums = 4;

/// Calls piece(entry of a, entry of b, first of two sums) for every [8, 4] · [4, 8] of a product.
template <int kSteps, class Piece>
ANISO_PHASE void in_small_pieces(const Piece& piece) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) piece(2 * step + half, step, 2 * half);
  }
}

#if defined(__CUDACC__)

/// sums += a bᵀ for a [16, 4 · kSteps] and b [8, 4 · kSteps], of which each lane has what Held
/// says.
template <int kSteps>
__device__ inline void multiply_add(const double (&a)[2 * kSteps], const double (&b)[kSteps],
                                    double (&sums)[kSums]) {
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
  in_small_pieces<kSteps>([&](int left, int right, int sum) {
    asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
        : "+d"(sums[sum]), "+d"(sums[sum + 1])
        : "d"(a[left]), "d"(b[right]));
  });
#endif
}

/// The thread block. Its shared memory begins with room for the sums, kSlots · kWarps doubles.
template <int kWarpCount>
struct BlockTeam {
  static constexpr int kWarps = kWarpCount, kLanes = 32;
  static constexpr int kThreads = kWarps * kLanes;
  static constexpr int kHeld = 1;  // lanes whose registers a thread holds

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

  __device__ static constexpr int held() { return kHeld; }
  __device__ int held_lane(int) const { return lane(); }

  template <int kSteps>
  __device__ void multiply_add(const double (&a)[kHeld][2 * kSteps],
                               const double (&b)[kHeld][kSteps],
                               double (&sums)[kHeld][kSums]) const {
    svd::multiply_add<kSteps>(a[0], b[0], sums[0]);
  }

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
  __device__ double largest(double x) const {
    const double own = warp_max(x);
    if (lane() == 0) exchange()[warp()] = own;
    sync();
    double most = own;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) most = fmax(most, exchange()[w]);
    sync();
    return most;
  }

 private:
  static __device__ double* exchange() {
    extern __shared__ __align__(16) double shared_memory[];
    return shared_memory;
  }
};

#else

/// Registers of a warp's lanes in the places that PTX gives them: column-major offsets, as
/// CUTLASS's MMA_Traits of SM90_16x8x{8,16}_F64F64F64F64_TN and SM80_8x8x4_F64F64F64F64_TN have
/// their strides.
struct Wide {
  static constexpr int kRows = 16;
  static int left(int lane, int i) { return lane % 4 * 16 + lane / 4 + i % 2 * 8 + i / 2 * 64; }
  static int right(int lane, int i) { return lane % 4 * 8 + lane / 4 + i * 32; }
  static int sum(int lane, int i) { return lane % 4 * 32 + lane / 4 + i % 2 * 16 + i / 2 * 8; }
};
struct Small {
  static constexpr int kRows = 8;
  static int left(int lane, int) { return lane % 4 * 8 + lane / 4; }
  static int right(int lane, int) { return lane % 4 * 8 + lane / 4; }
  static int sum(int lane, int i) { return lane % 4 * 16 + lane / 4 + i * 8; }
};

/// What mma.sync does to a warp: a(lane, i), b(lane, i) and sums(lane, i) are its registers.
template <class Places, int kSteps, class Left, class Right, class Sums>
void emulated_mma(const Left& a, const Right& b, const Sums& sums) {
  constexpr int kRows = Places::kRows, kDepth = 4 * kSteps, kOwn = kRows / 8;
  double left[kDepth * kRows], right[kDepth * 8];
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < kOwn * kSteps; ++i) left[Places::left(lane, i)] = a(lane, i);
    for (int i = 0; i < kSteps; ++i) right[Places::right(lane, i)] = b(lane, i);
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 2 * kOwn; ++i) {
      const int row = Places::sum(lane, i) % kRows, column = Places::sum(lane, i) / kRows;
      for (int k = 0; k < kDepth; ++k) {
        sums(lane, i) += left[k * kRows + row] * right[k * 8 + column];
      }
    }
  }
}

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
  static constexpr int kHeld = 32;

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

  /// The first thread of a warp holds all its lanes.
  int held() const { return lane() == 0 ? kHeld : 0; }
  static int held_lane(int l) { return l; }

  /// As on Hopper where a warp is one thread, else as before.
  template <int kSteps>
  void multiply_add(const double (&a)[kHeld][2 * kSteps], const double (&b)[kHeld][kSteps],
                    double (&sums)[kHeld][kSums]) const {
    if (held() == 0) return;
    if (lanes() == 1) {
      return emulated_mma<Wide, kSteps>([&](int l, int i) { return a[l][i]; },
                                        [&](int l, int i) { return b[l][i]; },
                                        [&](int l, int i) -> double& { return sums[l][i]; });
    }
    in_small_pieces<kSteps>([&](int left, int right, int sum) {
      emulated_mma<Small, 1>([&](int l, int) { return a[l][left]; },
                             [&](int l, int) { return b[l][right]; },
                             [&](int l, int i) -> double& { return sums[l][sum + i]; });
    });
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
  double largest(double x) const {
    const double own = warp_max(x);
    if (lane() == 0) shared->exchange[warp()] = own;
    sync();
    double most = own;
    for (int w = 0; w < kWarps; ++w) most = fmax(most, shared->exchange[w]);
    sync();
    return most;
  }
};

#endif

}  // namespace aniso::svd
