// Turns a cudaError_t into a Python exception that names the op.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace aniso {

inline void check_cuda(cudaError_t status, const char* op) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + " on CUDA failed: " + cudaGetErrorString(status));
}

}  // namespace aniso
