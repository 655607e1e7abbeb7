// Launches row_moments: chooses how rows map to blocks, runs the kernels, folds their partial sums.
#include <algorithm>

#include "cuda/row_moments.hpp"
#include "cuda/row_moments_kernel.cuh"

namespace aniso::cuda {
namespace {

using namespace moments;

constexpr int kSmallBlock = 8;  // warps; several small blocks per SM hide each other's barriers
constexpr int kNormThreads = 256;
constexpr int kNormBlocksPerSm = 8;  // 2048 threads, as many as an SM holds
constexpr int kFoldColumns = 32, kFoldSlices = 16;

/// Adds the moments of this block's rows and columns into its partial sums.
template <class S, bool kGiven>
__global__ __launch_bounds__(kWarp* kMaxWarps, 1) void add_rows(const Job job) {
  extern __shared__ __align__(16) unsigned char shared[];
  Worker<S, kGiven> worker(job, shared);
  worker.run();
}

/// The notes of all rows, for rows too long to stay in one block: one block per row.
template <class S>
__global__ __launch_bounds__(kNormThreads) void note_rows(const Job job) {
  __shared__ double exchanged[S::kScales][kNormThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t row = blockIdx.x; row < job.rows.n; row += gridDim.x) {
    double squares[S::kScales] = {};
    square_row<S>(job.rows, row, squares);
    for (int s = 0; s < S::kScales; ++s) {
      squares[s] = warp_sum(squares[s], kWarp);
      if (lane == 0) exchanged[s][warp] = squares[s];
    }
    __syncthreads();
    for (int s = 0; s < S::kScales; ++s) {
      squares[s] = warp_sum(exchanged[s][lane % (kNormThreads / kWarp)], kNormThreads / kWarp);
    }
    if (threadIdx.x == 0) job.notes[row] = describe(peek_status(job, row), squares);
    __syncthreads();
  }
}

/// Folds the partial rows in a fixed order and adds the result to the caller's accumulators.
__global__ void fold(const double* partials, int64_t count, int64_t d, RowMomentsView out) {
  __shared__ double slices[kFoldSlices][kFoldColumns];
  const int64_t width = 5 * d + kTally;
  const int64_t j = int64_t{blockIdx.x} * kFoldColumns + threadIdx.x;
  double total = neutral(j, d);
  for (int64_t p = threadIdx.y; p < count && j < width; p += kFoldSlices) {
    total = combine(j, d, total, partials[p * width + j]);
  }
  slices[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y != 0 || j >= width) return;
  for (int slice = 1; slice < kFoldSlices; ++slice) {
    total = combine(j, d, total, slices[slice][threadIdx.x]);
  }
  deposit(j, d, total, out);
}

/// How rows map to blocks; a function of shape, alignment and device only.
struct Plan {
  bool vector, wide, given;
  int team_warps, teams, multiprocessors;
  int64_t tile, tiles, blocks;

  int64_t note_bytes(int64_t n) const { return given ? n * int64_t{sizeof(RowNote)} : 0; }
};

int element_bytes(DType dtype) { return dtype == DType::f64 ? 8 : dtype == DType::f32 ? 4 : 2; }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Whether every row can be read in 16-byte pieces.
bool is_vector(const RowsView& rows) {
  const auto bits = reinterpret_cast<uintptr_t>(rows.data) |
                    static_cast<uintptr_t>(rows.row_stride * element_bytes(rows.dtype)) |
                    static_cast<uintptr_t>(rows.d * element_bytes(rows.dtype));
  return bits % 16 == 0;
}

/// Calls visit(Shape{}) with the compile-time shape that the plan asks for.
template <DType kDType, bool kVector, class Visit>
cudaError_t with_width(const Plan& plan, Visit visit) {
  if constexpr (kDType != DType::f64) {
    if (plan.wide) return visit(Shape<kDType, kVector, true>{});
  }
  return visit(Shape<kDType, kVector, false>{});
}
template <DType kDType, class Visit>
cudaError_t with_vector(const Plan& plan, Visit visit) {
  return plan.vector ? with_width<kDType, true>(plan, visit)
                     : with_width<kDType, false>(plan, visit);
}
template <class Visit>
cudaError_t with_shape(DType dtype, const Plan& plan, Visit visit) {
  switch (dtype) {
    case DType::f64:
      return with_vector<DType::f64>(plan, visit);
    case DType::f32:
      return with_vector<DType::f32>(plan, visit);
    case DType::f16:
      return with_vector<DType::f16>(plan, visit);
    case DType::bf16:
      return with_vector<DType::bf16>(plan, visit);
  }
  return cudaErrorInvalidValue;
}

/// Teams per block such that blocks of at most kMaxWarps warps fill an SM.
int teams_of(int team_warps) {
  return kSmallBlock % team_warps == 0 ? kSmallBlock / team_warps : 1;
}

/// 8192 columns at the widest step of two-byte rows: ring, squares, exchange, tally.
int64_t wide_shared_bytes() { return shared_bytes<Shape<DType::bf16, true, true>>(kMaxWarps); }

void divide_columns(const RowsView& rows, int64_t shared_limit, Plan& plan) {
  const bool narrow = rows.d <= kNarrowColumns;
  plan.wide = !narrow && rows.d <= kWideColumns && rows.dtype != DType::f64 &&
              wide_shared_bytes() <= shared_limit;
  plan.given = !narrow && !plan.wide;
  plan.tiles = plan.given ? ceil_div(rows.d, kNarrowColumns) : 1;
  // Tiles of about equal width that begin on 16-byte boundaries.
  plan.tile = plan.tiles == 1 ? rows.d : ceil_div(ceil_div(rows.d, plan.tiles), 8) * 8;
  const int warp_columns = (plan.wide ? kWideColumns : kNarrowColumns) / kMaxWarps;
  plan.team_warps = static_cast<int>(ceil_div(plan.tile, warp_columns));
  plan.teams = teams_of(plan.team_warps);
}

cudaError_t make_plan(const RowsView& rows, Plan& plan) {
  int device = 0, shared_limit = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&plan.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (status != cudaSuccess) return status;
  plan.vector = is_vector(rows);
  divide_columns(rows, shared_limit, plan);
  const int per_sm = kMaxWarps / (plan.team_warps * plan.teams);
  return with_shape(rows.dtype, plan, [&](auto shape) {
    const int64_t steps = ceil_div(rows.n, plan.teams * decltype(shape)::kRows);
    const int64_t full = std::max<int64_t>(1, plan.multiprocessors * per_sm / plan.tiles);
    plan.blocks = std::min(steps, full);
    return cudaSuccess;
  });
}

template <class... Args, class... Given>
cudaError_t launch(void (*kernel)(Args...), dim3 grid, dim3 block, int64_t shared_bytes,
                   cudaStream_t stream, Given... args) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, args...);
  return status == cudaSuccess ? cudaGetLastError() : status;
}

template <class S, bool kGiven>
cudaError_t launch_add(const Plan& plan, const Job& job, cudaStream_t stream) {
  const int64_t bytes = shared_bytes<S>(plan.team_warps * plan.teams);
  const cudaError_t status = cudaFuncSetAttribute(
      add_rows<S, kGiven>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (status != cudaSuccess) return status;
  const dim3 grid(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.tiles));
  const dim3 block(static_cast<unsigned>(plan.team_warps * plan.teams * kWarp));
  return launch(add_rows<S, kGiven>, grid, block, bytes, stream, job);
}

template <class S>
cudaError_t launch_rows(const Plan& plan, const Job& job, cudaStream_t stream) {
  if constexpr (!S::kWide) {
    if (plan.given) {
      const int64_t most = int64_t{plan.multiprocessors} * kNormBlocksPerSm;
      const dim3 grid(static_cast<unsigned>(std::min(job.rows.n, most)));
      const cudaError_t status = launch(note_rows<S>, grid, kNormThreads, 0, stream, job);
      return status == cudaSuccess ? launch_add<S, true>(plan, job, stream) : status;
    }
  }
  return launch_add<S, false>(plan, job, stream);
}

}  // namespace

int64_t row_moments_workspace_bytes(const RowsView& rows) {
  Plan plan;
  if (rows.n == 0) return 0;
  if (make_plan(rows, plan) != cudaSuccess) return -1;
  return plan.note_bytes(rows.n) + plan.blocks * plan.teams * (5 * rows.d + kTally) * 8;
}

cudaError_t row_moments(const RowsView& rows, const MaskView& mask, const RowMomentsView& out,
                        void* workspace, cudaStream_t stream) {
  Plan plan;
  if (rows.n == 0) return cudaSuccess;
  cudaError_t status = make_plan(rows, plan);
  if (status != cudaSuccess) return status;
  auto* partials =
      reinterpret_cast<double*>(static_cast<char*>(workspace) + plan.note_bytes(rows.n));
  const Job job{rows,       mask,     static_cast<RowNote*>(workspace), partials, plan.team_warps,
                plan.teams, plan.tile};
  status = with_shape(rows.dtype, plan,
                      [&](auto shape) { return launch_rows<decltype(shape)>(plan, job, stream); });
  if (status != cudaSuccess) return status;
  const dim3 grid(static_cast<unsigned>(ceil_div(5 * rows.d + kTally, kFoldColumns)));
  return launch(fold, grid, dim3(kFoldColumns, kFoldSlices), 0, stream, partials,
                plan.blocks * plan.teams, rows.d, out);
}

}  // namespace aniso::cuda
