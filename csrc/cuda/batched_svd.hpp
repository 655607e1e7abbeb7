// batched_svd on an NVIDIA GPU: raw pointers, sizes and a stream in, cudaError_t out.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/matrices_view.hpp"
#include "cuda/batched_svd_limits.hpp"

namespace aniso::cuda {

/// The largest min(m, n) that the current device has shared memory for, or -1 when it does not
/// answer.
int64_t batched_svd_max_side();

/// Bytes of device memory one call needs (16-byte aligned), or -1 when the device does not answer.
int64_t batched_svd_workspace_bytes(const MatricesView& x, const SvdView& out, SvdEffort effort);

/// The k largest singular values of every matrix, descending, with bounds; singular vectors and
/// checks when out.left is not null. One thread block per matrix.
///
/// Matrices that need more than `effort` are marked SVD_FAILED, and what else is written of them
/// means nothing: with SvdEffort::refined those whose vectors are not told apart, by rotations
/// those that do not converge. Asynchronous on `stream`; min(m, n) <= batched_svd_max_side(). Needs
/// compute capability 8.0.
cudaError_t batched_svd(const MatricesView& x, const SvdView& out, SvdEffort effort,
                        void* workspace, cudaStream_t stream);

}  // namespace aniso::cuda
