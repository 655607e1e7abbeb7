// Zeroed scratch memory that starts on a cache line: vector loads never straddle two.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

namespace aniso {

template <class T>
class AlignedArray {
 public:
  explicit AlignedArray(std::size_t count)
      : data_(static_cast<T*>(::operator new(count * sizeof(T) + 1, kLine))) {
    std::memset(data_.get(), 0, count * sizeof(T));
  }
  T* data() { return data_.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kLine); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace aniso
