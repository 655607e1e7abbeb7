// Batches of matrices as kernels see them: raw pointers and sizes, no Python, no CUDA.
#pragma once

#include <cstdint>

#include "common/rows_view.hpp"

namespace aniso {

/// Matrices [b, m, n] of one dtype, any strides (in elements).
struct MatricesView {
  const void* data;
  DType dtype;
  int64_t b;
  int64_t m;
  int64_t n;
  int64_t batch_stride;
  int64_t row_stride;
  int64_t column_stride;
};

/// Methods as written to SvdView::methods.
enum SvdMethod : int8_t {
  SVD_NOT_FINITE = -1,
  SVD_GRAM = 0,
  SVD_REFINED = 1,
  SVD_JACOBI = 2,
  /// No convergence: the caller takes another solver.
  SVD_FAILED = 3,
};

/// What batched_svd writes, contiguous.
struct SvdView {
  int64_t k;
  double* values;   ///< [b, k]
  void* left;       ///< [b, m, k] or null
  void* right;      ///< [b, k, n] or null
  bool wide;        ///< left and right are float64, else float32
  double* bounds;   ///< [2, b, k]
  double* checks;   ///< [2, b] or null
  int8_t* methods;  ///< [b]
};

}  // namespace aniso
