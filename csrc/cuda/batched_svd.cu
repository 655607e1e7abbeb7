// Launches batched_svd: one block per matrix, as many blocks as the device holds at once.
#include <algorithm>

#include "cuda/batched_svd.hpp"
#include "cuda/batched_svd_matrix.hpp"

namespace aniso::cuda {
namespace {

using svd::BlockTeam;
using svd::Job;

// Orders up to which a block has 8 warps, and up to which its Gram matrix lies on chip (estimated:
// a barrier costs more with every warp).
constexpr int kMiddle = 96, kLarge = 160;

/// A kernel's shape: warps of its blocks, the largest order, and where the Gram matrix lies.
template <int kWarpCount, int kMostSide, bool kOnChip>
struct Shape {
  using BlockOf = BlockTeam<kWarpCount>;
  static constexpr int kWarps = kWarpCount, kMost = kMostSide;
  static constexpr bool kNear = kOnChip;
  static constexpr int kExchange = svd::kSlots * kWarps;
  static constexpr int kHead = kExchange + (sizeof(Job) + 15) / 16 * 2;
};

template <class S>
__global__ __launch_bounds__(S::BlockOf::kThreads, 1) void factorize(const Job job) {
  extern __shared__ __align__(16) double memory[];
  // Read where it is needed: kept in registers, the job would leave too few for the sums.
  Job& near_job = *reinterpret_cast<Job*>(memory + S::kExchange);
  if (threadIdx.x == 0) near_job = job;
  __syncthreads();
  const typename S::BlockOf team{memory};
  svd::Factorization<S::kMost, S::kNear, typename S::BlockOf> matrix(team, near_job,
                                                                     memory + S::kHead, blockIdx.x);
  for (int64_t index = blockIdx.x; index < near_job.x.b; index += gridDim.x) matrix.run(index);
}

template <class S>
int64_t shared_bytes(int64_t p) {
  return (S::kHead + svd::own_doubles(p, S::kWarps, S::kNear)) * int64_t{sizeof(double)};
}

/// Calls visit(Shape{}) with the shape for short sides of p on a device that lets a block have so
/// many bytes of shared memory.
template <class Visit>
cudaError_t with_shape(int64_t p, int64_t shared_limit, Visit visit) {
  using Large = Shape<16, kLarge, true>;
  if (p <= kMiddle) return visit(Shape<8, kMiddle, true>{});
  if (p <= kLarge && shared_bytes<Large>(p) <= shared_limit) return visit(Large{});
  return visit(Shape<16, svd::kMostOrder, false>{});
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
cudaError_t count_blocks(const Device& device, const MatricesView& x, int64_t p, int64_t& blocks) {
  const auto bytes = static_cast<size_t>(shared_bytes<S>(p));
  cudaError_t status = cudaFuncSetAttribute(
      factorize<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (status != cudaSuccess) return status;
  int per_sm = 0;
  status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, factorize<S>,
                                                         S::BlockOf::kThreads, bytes);
  blocks = std::min(x.b, int64_t{device.multiprocessors} * std::max(per_sm, 1));
  return status;
}

/// Calls visit(Shape{}, job without its workspace, blocks).
template <class Visit>
cudaError_t with_plan(const MatricesView& x, const SvdView& out, Visit visit) {
  Device device{};
  cudaError_t status = ask_device(device);
  if (status != cudaSuccess) return status;
  const int64_t p = std::min(x.m, x.n), q = std::max(x.m, x.n);
  return with_shape(p, device.shared_limit, [&](auto shape) {
    using S = decltype(shape);
    int64_t blocks = 0;
    const cudaError_t counted = count_blocks<S>(device, x, p, blocks);
    if (counted != cudaSuccess) return counted;
    const bool vectors = out.left != nullptr;
    const Job job{x,
                  out,
                  static_cast<int>(p),
                  static_cast<int>(q),
                  static_cast<int>(out.k),
                  nullptr,
                  svd::workspace_doubles(p, q, out.k, vectors, S::kNear),
                  svd::gram_error(p, q)};
    return visit(shape, job, blocks);
  });
}

}  // namespace

int64_t batched_svd_workspace_bytes(const MatricesView& x, const SvdView& out) {
  int64_t bytes = 0;
  const cudaError_t status = with_plan(x, out, [&](auto, const Job& job, int64_t blocks) {
    bytes = blocks * job.workspace_doubles * int64_t{sizeof(double)};
    return cudaSuccess;
  });
  return status == cudaSuccess ? bytes : -1;
}

cudaError_t batched_svd(const MatricesView& x, const SvdView& out, void* workspace,
                        cudaStream_t stream) {
  if (x.b == 0) return cudaSuccess;
  return with_plan(x, out, [&](auto shape, Job job, int64_t blocks) {
    using S = decltype(shape);
    job.workspace = static_cast<double*>(workspace);
    const auto bytes = static_cast<size_t>(shared_bytes<S>(job.p));
    factorize<S><<<static_cast<unsigned>(blocks), S::BlockOf::kThreads, bytes, stream>>>(job);
    return cudaGetLastError();
  });
}

}  // namespace aniso::cuda
