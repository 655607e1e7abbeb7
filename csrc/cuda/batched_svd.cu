// Launches batched_svd: one block per matrix, as many blocks as the device holds at once.
#include <algorithm>
#include <new>

#include "cuda/batched_svd.hpp"
#include "cuda/batched_svd_matrix.hpp"

namespace aniso::cuda {
namespace {

using svd::BlockTeam;
using svd::Job;

// Orders up to which a block has 8 warps, and up to which its Gram matrix lies on chip and is
// reduced in one stage (estimated: a barrier costs more with every warp).
constexpr int kMiddle = 96, kLarge = 160;
// Bytes that the workspaces of all blocks may take: fewer run where a matrix needs more.
constexpr int64_t kMostWorkspace = int64_t{4} << 30;
// The largest order of two stages that 163 KiB of shared memory have room for.
constexpr int kShort = 352;

/// A kernel's shape: warps of its blocks, the largest order, and where the Gram matrix lies.
template <int kWarpCount, int kMostSide, bool kOnChip>
struct Shape {
  using BlockOf = BlockTeam<kWarpCount>;
  static constexpr int kWarps = kWarpCount, kMost = kMostSide;
  static constexpr bool kNear = kOnChip;
  using Matrix = svd::Factorization<kMost, kNear, BlockOf>;
};

template <class S>
__global__ __launch_bounds__(S::BlockOf::kThreads, 1) void factorize(const Job job) {
  // Both are the same for all threads and read where they are needed: kept in registers, they would
  // leave too few for the sums.
  __shared__ __align__(16) char job_room[sizeof(Job)], matrix_room[sizeof(typename S::Matrix)];
  Job& near_job = *reinterpret_cast<Job*>(job_room);
  auto& matrix = *reinterpret_cast<typename S::Matrix*>(matrix_room);
  if (threadIdx.x == 0) {
    near_job = job;
    new (&matrix) typename S::Matrix({}, near_job, blockIdx.x);
  }
  __syncthreads();
  for (int64_t index = blockIdx.x; index < near_job.x.b;) {
    matrix.run(index);
    index = matrix.index() + gridDim.x;
    __syncthreads();
  }
}

/// Of the dynamic kind.
template <class S>
int64_t shared_bytes(int p, bool rotate) {
  const int64_t own = svd::own_doubles(S::kMost, p, S::kWarps, S::kNear, rotate);
  return (svd::kSlots * S::kWarps + own) * int64_t{sizeof(double)};
}

/// Whether a block's memory has room for short sides of p, beside the job and the matrix.
template <class S>
bool fits(int p, bool rotate, int64_t limit) {
  const int64_t fixed = 2 * 16 + sizeof(Job) + sizeof(typename S::Matrix);
  return p <= S::kMost && shared_bytes<S>(p, rotate) + fixed <= limit;
}

/// Calls visit(Shape{}) with the shape for short sides of p on a device that lets a block have so
/// many bytes of shared memory; cudaErrorInvalidValue where it lacks them.
template <class Visit>
cudaError_t with_shape(int p, bool rotate, int64_t shared_limit, Visit visit) {
  using Large = Shape<16, kLarge, true>;
  using Banded = Shape<16, svd::kMostOrder, false>;
  using Short = Shape<16, kShort, false>;
  if (p <= kMiddle) return visit(Shape<8, kMiddle, true>{});
  if (fits<Large>(p, rotate, shared_limit)) return visit(Large{});
  if (fits<Banded>(p, rotate, shared_limit)) return visit(Banded{});
  if (fits<Short>(p, rotate, shared_limit)) return visit(Short{});
  return cudaErrorInvalidValue;
}

struct Device {
  int multiprocessors, shared_limit;
};

cudaError_t ask_device(Device& found) {
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status =
      cudaDeviceGetAttribute(&found.shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status != cudaSuccess) return status;
  return cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, device);
}

/// How many blocks run: all that the device holds at once, or one per matrix.
template <class S>
cudaError_t count_blocks(const Device& device, const Job& job, int64_t& blocks) {
  const auto bytes = static_cast<size_t>(shared_bytes<S>(job.p, job.rotate));
  cudaError_t status = cudaFuncSetAttribute(
      factorize<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (status != cudaSuccess) return status;
  int per_sm = 0;
  status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, factorize<S>,
                                                         S::BlockOf::kThreads, bytes);
  const int64_t room = kMostWorkspace / int64_t{sizeof(double)} / (job.workspace_doubles + 1);
  blocks = std::min(
      {job.x.b, int64_t{device.multiprocessors} * std::max(per_sm, 1), std::max(room, int64_t{1})});
  return status;
}

/// Calls visit(Shape{}, job without its workspace, blocks).
template <class Visit>
cudaError_t with_plan(const MatricesView& x, const SvdView& out, SvdEffort effort, Visit visit) {
  Device device{};
  cudaError_t status = ask_device(device);
  if (status != cudaSuccess) return status;
  const int p = static_cast<int>(std::min(x.m, x.n));
  const bool rotate = svd::job_of(x, out, true, effort).rotate;
  return with_shape(p, rotate, device.shared_limit, [&](auto shape) {
    using S = decltype(shape);
    const Job job = svd::job_of(x, out, S::kNear, effort);
    int64_t blocks = 0;
    const cudaError_t counted = count_blocks<S>(device, job, blocks);
    return counted == cudaSuccess ? visit(shape, job, blocks) : counted;
  });
}

}  // namespace

int64_t batched_svd_max_side() {
  Device device{};
  if (ask_device(device) != cudaSuccess) return -1;
  int p = svd::kMostOrder;
  const auto accept = [](auto) { return cudaSuccess; };
  while (with_shape(p, true, device.shared_limit, accept) != cudaSuccess) --p;
  return p;
}

int64_t batched_svd_workspace_bytes(const MatricesView& x, const SvdView& out, SvdEffort effort) {
  int64_t bytes = 0;
  const cudaError_t status = with_plan(x, out, effort, [&](auto, const Job& job, int64_t blocks) {
    bytes = blocks * job.workspace_doubles * int64_t{sizeof(double)};
    return cudaSuccess;
  });
  return status == cudaSuccess ? bytes : -1;
}

cudaError_t batched_svd(const MatricesView& x, const SvdView& out, SvdEffort effort,
                        void* workspace, cudaStream_t stream) {
  if (x.b == 0) return cudaSuccess;
  return with_plan(x, out, effort, [&](auto shape, Job job, int64_t blocks) {
    using S = decltype(shape);
    job.workspace = static_cast<double*>(workspace);
    const auto bytes = static_cast<size_t>(shared_bytes<S>(job.p, job.rotate));
    factorize<S><<<static_cast<unsigned>(blocks), S::BlockOf::kThreads, bytes, stream>>>(job);
    return cudaGetLastError();
  });
}

}  // namespace aniso::cuda
