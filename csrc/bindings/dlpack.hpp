// The DLPack exchange structures (ABI version 1.0 and the unversioned one before it), as laid down
// by the DLPack specification: the fields this project reads, in their order.
#pragma once

#include <cstdint>

namespace aniso::dlpack {

enum DeviceType : int32_t { kCPU = 1, kCUDA = 2, kCUDAHost = 3, kCUDAManaged = 13 };
enum TypeCode : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6 };
constexpr uint64_t kReadOnly = 1;

struct Tensor {
  void* data;
  int32_t device_type;
  int32_t device_id;
  int32_t ndim;
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;  // in elements; null means row-major
  uint64_t byte_offset;
};

struct Managed {  // capsule "dltensor"
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct ManagedVersioned {  // capsule "dltensor_versioned"
  uint32_t major;
  uint32_t minor;
  void* context;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;
  Tensor tensor;
};

/// Functions of a library of arrays, capsule "dlpack_exchange_api" of a type's attribute
/// __dlpack_c_exchange_api__ (since DLPack 1.3).
struct ExchangeApi {
  uint32_t major;
  uint32_t minor;
  void* previous;
  void (*unused[3])();
  /// Fills in what the object still owns, without waiting for its stream; not 0 and a Python error
  /// where it cannot be said. May be null.
  int (*borrow)(void* object, Tensor* out);
};

}  // namespace aniso::dlpack
