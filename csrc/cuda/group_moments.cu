// group_moments: one block per run of rows. Sorted runs instead of fp64 atomics: every output has
// one writer, so results repeat exactly, and products need no sums in memory.
#include <algorithm>

#include "cuda/group_moments.hpp"
#include "cuda/row_moments_row.cuh"

namespace aniso::cuda {
namespace {

using namespace moments;

constexpr int kNoteWarps = 8;     // rows that a block notes at once
constexpr int kMaxThreads = 256;  // of a block that adds a run
constexpr int kColumns = 4;       // per thread and tile: loads in flight (estimated)
constexpr int kBatch = 4;         // rows whose loads are in flight together (estimated)
constexpr int64_t kMaxBlocks = 1 << 20;

struct RunsJob {
  RowsView rows;
  RunsView runs;
  GroupMomentsView out;
  RowNote* notes;  ///< of row order[i] at i
};

/// Σx and Σx̂ of a thread's columns k, k + blockDim.x, … of one run.
struct Columns {
  double sum[kColumns] = {};
  double unit[kColumns] = {};
};

/// The notes of all rows, one warp per row.
template <class S>
__global__ __launch_bounds__(kNoteWarps* kWarp) void note_rows(const RunsJob job) {
  const int64_t step = int64_t{gridDim.x} * kNoteWarps;
  for (int64_t i = int64_t{blockIdx.x} * kNoteWarps + threadIdx.y; i < job.runs.rows; i += step) {
    double squares[S::kScales] = {};
    square_row<S>(job.rows, job.runs.order[i], squares);
    for (double& square : squares) square = warp_sum(square, kWarp);
    if (threadIdx.x == 0) job.notes[i] = describe(kKept, squares);
  }
}

/// Adds rows order[i], …, at most kBatch of them and none beyond `end`.
template <class S>
__device__ void add_batch(const RunsJob& job, int64_t i, int64_t end, int64_t k, Columns& columns) {
  typename S::Bits bits[kBatch][kColumns];
  double inverse[kBatch], scale[kBatch];
#pragma unroll
  for (int r = 0; r < kBatch; ++r) {
    const int64_t at = min(i + r, end - 1);
    const RowNote& note = job.notes[at];
    inverse[r] = note.inverse, scale[r] = note.scale;
    // A row that is not kept reads as zeros, so that no NaN enters a sum.
    const bool kept = i + r < end && note.status <= kZero;
    const auto* row = static_cast<const typename S::Bits*>(job.rows.data) +
                      job.runs.order[at] * job.rows.row_stride;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int64_t column = k + c * int64_t{blockDim.x};
      bits[r][c] = kept && column < job.rows.d ? row[column] : typename S::Bits{0};
    }
  }
#pragma unroll
  for (int r = 0; r < kBatch; ++r) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const double x = S::value(bits[r][c]);
      columns.sum[c] += x;
      columns.unit[c] = fma(S::kScales == 3 ? x * scale[r] : x, inverse[r], columns.unit[c]);
    }
  }
}

/// Adds a run's columns to the sums of its group, or to this block's totals; their products to
/// `own`.
__device__ void deposit_columns(const RunsJob& job, int64_t slot, int64_t k, const Columns& columns,
                                double* own) {
  const GroupMomentsView& out = job.out;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const int64_t column = k + c * int64_t{blockDim.x};
    if (column >= job.rows.d) return;
    if (out.sums) out.sums[slot * job.rows.d + column] += columns.sum[c];
    if (out.unit_sums) out.unit_sums[slot * job.rows.d + column] += columns.unit[c];
    const double mean = columns.sum[c] * out.scale;
    if (out.totals) out.totals[blockIdx.x * job.rows.d + column] += columns.unit[c];
    own[0] = fma(columns.unit[c], columns.unit[c], own[0]);
    own[1] = fma(columns.unit[c], mean, own[1]);
    own[2] = fma(mean, mean, own[2]);
  }
}

/// Replaces every value by its total over the block.
template <int kCount>
__device__ void block_total(double (&values)[kCount]) {
  __shared__ double exchanged[kCount][kMaxThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int q = 0; q < kCount; ++q) {
    const double total = warp_sum(values[q], kWarp);
    if (lane == 0) exchanged[q][warp] = total;
    values[q] = 0.0;
  }
  __syncthreads();
  for (int w = 0; w < static_cast<int>(blockDim.x) / kWarp; ++w) {
#pragma unroll
    for (int q = 0; q < kCount; ++q) values[q] += exchanged[q][w];
  }
  __syncthreads();
}

/// Adds run after run; its products are complete when all tiles of columns are through.
template <class S>
__global__ __launch_bounds__(kMaxThreads) void add_runs(const RunsJob job) {
  for (int64_t s = blockIdx.x; s < job.runs.count; s += gridDim.x) {
    const int64_t begin = job.runs.begin[s], end = job.runs.end[s], slot = job.runs.slot[s];
    double own[5] = {};  // three products, rows with a direction, Σ‖x‖²
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
      if (job.notes[i].status != kKept) continue;
      own[3] += 1.0;
      own[4] = fma(job.notes[i].norm, job.notes[i].norm, own[4]);
    }
    for (int64_t k = threadIdx.x; k - threadIdx.x < job.rows.d; k += kColumns * blockDim.x) {
      Columns columns;
      for (int64_t i = begin; i < end; i += kBatch) add_batch<S>(job, i, end, k, columns);
      deposit_columns(job, slot, k, columns, own);
    }
    block_total(own);
    if (threadIdx.x != 0) continue;
    job.out.counts[slot] += static_cast<int64_t>(own[3]);  // whole and below 2^53
    job.out.square_norms[slot] += own[4];
    for (int q = 0; q < 3 && job.out.products; ++q) job.out.products[3 * slot + q] += own[q];
  }
}

template <DType kDType>
cudaError_t launch(const RunsJob& job, cudaStream_t stream) {
  using S = Shape<kDType, false, false>;  // any alignment
  const int64_t notes = std::min((job.runs.rows + kNoteWarps - 1) / kNoteWarps, kMaxBlocks);
  note_rows<S><<<static_cast<unsigned>(notes), dim3(kWarp, kNoteWarps), 0, stream>>>(job);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) return status;
  const int64_t warps = (job.rows.d + kColumns * kWarp - 1) / (kColumns * kWarp);
  const int threads = static_cast<int>(std::min<int64_t>(warps * kWarp, kMaxThreads));
  const int64_t most = job.out.totals ? job.out.writers : kMaxBlocks;
  const auto blocks = static_cast<unsigned>(std::min(job.runs.count, most));
  add_runs<S><<<blocks, threads, 0, stream>>>(job);
  return cudaGetLastError();
}

}  // namespace

int64_t group_moments_workspace_bytes(int64_t rows) { return rows * int64_t{sizeof(RowNote)}; }

cudaError_t group_moments(const RowsView& rows, const RunsView& runs, const GroupMomentsView& out,
                          void* workspace, cudaStream_t stream) {
  if (runs.rows == 0 || runs.count == 0) return cudaSuccess;
  const RunsJob job{rows, runs, out, static_cast<RowNote*>(workspace)};
  switch (rows.dtype) {
    case DType::f64:
      return launch<DType::f64>(job, stream);
    case DType::f32:
      return launch<DType::f32>(job, stream);
    case DType::f16:
      return launch<DType::f16>(job, stream);
    case DType::bf16:
      return launch<DType::bf16>(job, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace aniso::cuda
