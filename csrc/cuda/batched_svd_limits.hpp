// What batched_svd takes on a GPU; known also to builds without CUDA.
#pragma once

#include <cstdint>

namespace aniso::cuda {

/// The largest short side on any device: three panels of it fill the shared memory of one block.
constexpr int64_t BATCHED_SVD_MAX_SIDE = 512;
/// The largest matrix: offsets within one are 32-bit.
constexpr int64_t BATCHED_SVD_MAX_SIZE = int64_t{1} << 26;

}  // namespace aniso::cuda
