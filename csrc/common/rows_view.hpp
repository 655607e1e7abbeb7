// Rows of activations as kernels see them: raw pointers and sizes, no Python, no CUDA.
#pragma once

#include <cstdint>

namespace aniso {

enum class DType : int { f64, f32, f16, bf16 };

/// Rows [n, d] of one dtype; columns lie side by side, rows `row_stride` elements apart.
struct RowsView {
  const void* data;
  DType dtype;
  int64_t n;
  int64_t d;
  int64_t row_stride;
};

/// One byte per row, non-zero keeps the row; a null pointer keeps all.
struct MaskView {
  const uint8_t* data;
  int64_t stride;
};

}  // namespace aniso
