#include "bindings/tensor_ref.hpp"

namespace aniso {
namespace {

/// Whether the array's type told of the array by a C function (measured: a call with seven tensors
/// takes 7 us, and 45 by way of __dlpack__).
bool borrow(const py::object& array, dlpack::Tensor& tensor) {
  static PyObject* const attribute = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
  PyObject* const found =
      PyObject_GetAttr(reinterpret_cast<PyObject*>(Py_TYPE(array.ptr())), attribute);
  if (found == nullptr) {
    PyErr_Clear();
    return false;
  }
  const py::object capsule = py::reinterpret_steal<py::object>(found);
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return false;
  const auto* api = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (api->major != 1 || api->borrow == nullptr) return false;
  if (api->borrow(array.ptr(), &tensor) == 0) return true;
  PyErr_Clear();  // __dlpack__ says it in one sentence
  return false;
}

/// The array's capsule; asks for the versioned form first (read-only arrays exist only there).
py::object request_capsule(const py::object& array, const char* name) {
  if (!py::hasattr(array, "__dlpack__")) {
    throw py::type_error(std::string(name) + " is a " + Py_TYPE(array.ptr())->tp_name +
                         "; pass an array with __dlpack__ (torch, NumPy, CuPy, JAX)");
  }
  const py::object method = array.attr("__dlpack__");
  const auto device = array.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  py::dict options;
  // -1: no synchronisation; the caller passes the stream the kernel runs on.
  if (device.first == dlpack::kCUDA) options["stream"] = -1;
  py::dict versioned(options);
  versioned["max_version"] = py::make_tuple(1, 0);
  try {
    return method(**versioned);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    return method(**options);  // a producer from before DLPack 1.0
  }
}

}  // namespace

TensorRef::TensorRef(const py::object& array, const char* name) : name_(name) {
  if (!borrow(array, tensor_)) open_capsule(array);
  const int32_t device = tensor_.device_type;
  if (device != dlpack::kCPU && device != dlpack::kCUDA && device != dlpack::kCUDAHost) {
    refuse("lies on a device this build has no kernels for; move it to CPU or CUDA");
  }
  if (tensor_.data == nullptr && count() > 0) {
    refuse("has no numbers in memory; pass a real tensor");
  }
}

void TensorRef::open_capsule(const py::object& array) {
  capsule_ = request_capsule(array, name_);
  // It keeps its name: its own destructor frees the tensor when capsule_ goes.
  if (PyCapsule_IsValid(capsule_.ptr(), "dltensor_versioned")) {
    auto* managed = static_cast<dlpack::ManagedVersioned*>(
        PyCapsule_GetPointer(capsule_.ptr(), "dltensor_versioned"));
    if (managed->major != 1) refuse("comes in an unknown DLPack version");
    tensor_ = managed->tensor;
    read_only_ = (managed->flags & dlpack::kReadOnly) != 0;
  } else if (PyCapsule_IsValid(capsule_.ptr(), "dltensor")) {
    tensor_ =
        static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"))->tensor;
  } else {
    refuse("gave no DLPack capsule");
  }
}

void TensorRef::refuse(const std::string& what) const {
  throw py::value_error(std::string(name_) + " " + what);
}

int64_t TensorRef::stride(int axis) const {
  if (tensor_.strides != nullptr) return tensor_.strides[axis];
  int64_t step = 1;
  for (int i = tensor_.ndim - 1; i > axis; --i) step *= tensor_.shape[i];
  return step;
}

bool TensorRef::contiguous() const {
  int64_t step = 1;
  for (int i = tensor_.ndim - 1; i >= 0; --i) {
    if (tensor_.shape[i] > 1 && stride(i) != step) return false;
    step *= tensor_.shape[i];
  }
  return true;
}

int64_t TensorRef::count() const {
  int64_t total = 1;
  for (int i = 0; i < tensor_.ndim; ++i) total *= tensor_.shape[i];
  return total;
}

int64_t TensorRef::bytes() const {
  if (!contiguous()) refuse("must be contiguous");
  return count() * (tensor_.bits / 8);
}

DType TensorRef::dtype() const {
  if (tensor_.code == dlpack::kBfloat && tensor_.bits == 16) return DType::bf16;
  if (tensor_.code == dlpack::kFloat && tensor_.bits == 16) return DType::f16;
  if (tensor_.code == dlpack::kFloat && tensor_.bits == 32) return DType::f32;
  if (tensor_.code == dlpack::kFloat && tensor_.bits == 64) return DType::f64;
  refuse("must be float64, float32, float16 or bfloat16");
}

RowsView TensorRef::rows() const {
  if (tensor_.ndim != 2) {
    refuse("has " + std::to_string(tensor_.ndim) + " dimensions; rows are [n, d]");
  }
  if (size(1) > 1 && stride(1) != 1) refuse("must have its columns side by side");
  return {data(), dtype(), size(0), size(1), stride(0)};
}

MatricesView TensorRef::matrices() const {
  if (tensor_.ndim != 3) {
    refuse("has " + std::to_string(tensor_.ndim) + " dimensions; matrices are [b, m, n]");
  }
  return {data(), dtype(), size(0), size(1), size(2), stride(0), stride(1), stride(2)};
}

MaskView TensorRef::mask(int64_t n) const {
  if (tensor_.code != dlpack::kBool || tensor_.bits != 8 || tensor_.ndim != 1 || size(0) != n) {
    refuse("must be a bool per row: [" + std::to_string(n) + "]");
  }
  return {reinterpret_cast<const uint8_t*>(data()), stride(0)};
}

const int64_t* TensorRef::indices() const {
  if (tensor_.code != dlpack::kInt || tensor_.bits != 64 || tensor_.ndim != 1 || !contiguous()) {
    refuse("must be int64 values side by side");
  }
  return reinterpret_cast<const int64_t*>(data());
}

void* TensorRef::accumulator(int64_t count, uint8_t code, int bits) const {
  const bool fits =
      tensor_.code == code && tensor_.bits == bits && contiguous() && bytes() == count * bits / 8;
  if (!fits || read_only_) {
    refuse("must be a writable, contiguous accumulator of " + std::to_string(count) + " " +
           (code == dlpack::kFloat ? "float" : "int") + std::to_string(bits) + " values");
  }
  return data();
}

double* TensorRef::doubles(int64_t count) const {
  return static_cast<double*>(accumulator(count, dlpack::kFloat, 64));
}

int64_t* TensorRef::integers(int64_t count) const {
  return static_cast<int64_t*>(accumulator(count, dlpack::kInt, 64));
}

float* TensorRef::floats(int64_t count) const {
  return static_cast<float*>(accumulator(count, dlpack::kFloat, 32));
}

int8_t* TensorRef::bytes_of(int64_t count) const {
  return static_cast<int8_t*>(accumulator(count, dlpack::kInt, 8));
}

}  // namespace aniso
