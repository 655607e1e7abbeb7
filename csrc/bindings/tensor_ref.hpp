// The one place that knows both Python and tensors: any object with __dlpack__ becomes a pointer,
// a shape and strides, checked against what a kernel asks for.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "bindings/dlpack.hpp"
#include "common/matrices_view.hpp"
#include "common/rows_view.hpp"

namespace aniso {

namespace py = pybind11;

/// A tensor borrowed through DLPack for the duration of a call, whose argument keeps it alive.
class TensorRef {
 public:
  /// `name` is the argument's name, for error sentences.
  TensorRef(const py::object& array, const char* name);

  bool on_cuda() const { return tensor_.device_type == dlpack::kCUDA; }
  int device_id() const { return tensor_.device_id; }
  int64_t size(int axis) const { return tensor_.shape[axis]; }
  int64_t bytes() const;
  char* data() const { return static_cast<char*>(tensor_.data) + tensor_.byte_offset; }

  /// As rows [n, d]: two dimensions, a floating dtype, columns side by side.
  RowsView rows() const;
  /// As matrices [b, m, n]: three dimensions, a floating dtype, any strides.
  MatricesView matrices() const;
  /// As a mask of `n` booleans.
  MaskView mask(int64_t n) const;
  /// As int64 values side by side, to read.
  const int64_t* indices() const;
  /// As a writable, contiguous accumulator of `count` float64 or int64 values.
  double* doubles(int64_t count) const;
  int64_t* integers(int64_t count) const;
  /// The same of `count` float32 or int8 values.
  float* floats(int64_t count) const;
  int8_t* bytes_of(int64_t count) const;

 private:
  void open_capsule(const py::object& array);
  int64_t stride(int axis) const;
  int64_t count() const;
  bool contiguous() const;
  DType dtype() const;
  void* accumulator(int64_t count, uint8_t code, int bits) const;
  [[noreturn]] void refuse(const std::string& what) const;

  const char* name_;
  py::object capsule_;  // owns what tensor_ points to, where the array does not
  dlpack::Tensor tensor_{};
  bool read_only_ = false;
};

}  // namespace aniso
