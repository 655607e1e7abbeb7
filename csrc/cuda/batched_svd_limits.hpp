// What batched_svd takes on a GPU; known also to builds without CUDA.
#pragma once

#include <cstdint>

namespace aniso::cuda {

/// What a call does for small values. float64 matrices are rotated either way, where these leave a
/// Gram matrix no room.
enum class SvdEffort : int8_t {
  gram,     ///< marks the matrices that have them
  refined,  ///< by further Gram matrices
  high,     ///< by rotations of the rows themselves
};

/// The largest short side on any device: three panels of it fill the shared memory of one block.
constexpr int64_t BATCHED_SVD_MAX_SIDE = 512;
/// The largest matrix: offsets within one are 32-bit.
constexpr int64_t BATCHED_SVD_MAX_SIZE = int64_t{1} << 26;

}  // namespace aniso::cuda
