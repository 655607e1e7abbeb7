// row_moments on an NVIDIA GPU: raw pointers, sizes and a stream in, cudaError_t out.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/row_moments_view.hpp"
#include "common/rows_view.hpp"

namespace aniso::cuda {

/// Bytes of device memory one call on these rows needs on the current device (16-byte aligned);
/// -1 if the device cannot be asked. Depends on the shape and the alignment, never on the values.
int64_t row_moments_workspace_bytes(const RowsView& rows);

/// Adds the moments of the kept rows to `out`, in float64 and in an order fixed by shape and
/// device.
///
/// norms ‖x‖, x̂ = x/‖x‖; Σx, Σx̂, Σx_k², Σx̂_k², Σ‖x‖, Σ‖x‖², Σ‖x‖⁴, min/max ‖x‖, max|x_k|, counts.
/// A masked or non-finite row is only counted, a zero row has no direction. Asynchronous on
/// `stream`. x is read once for d <= 4096 (8192 below float64 where a block may use 225 KiB of
/// shared memory), else twice: norms first, then column tiles. Needs compute capability 8.0.
cudaError_t row_moments(const RowsView& rows, const MaskView& mask, const RowMomentsView& out,
                        void* workspace, cudaStream_t stream);

}  // namespace aniso::cuda
