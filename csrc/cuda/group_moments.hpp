// group_moments on an NVIDIA GPU: raw pointers, sizes and a stream in, cudaError_t out.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/group_moments_view.hpp"
#include "common/rows_view.hpp"

namespace aniso::cuda {

/// Bytes of device memory one call on runs of `rows` rows needs (16-byte aligned).
int64_t group_moments_workspace_bytes(int64_t rows);

/// Adds the moments of all runs to `out`, in float64 and in an order fixed by the runs and d.
///
/// A non-finite row is left out, a zero row has no direction. Asynchronous on `stream`. x is read
/// twice: norms first. Needs compute capability 8.0.
cudaError_t group_moments(const RowsView& rows, const RunsView& runs, const GroupMomentsView& out,
                          void* workspace, cudaStream_t stream);

}  // namespace aniso::cuda
