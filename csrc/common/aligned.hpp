// Scratch memory, zeroed unless said, that starts on a cache line: vector loads never straddle two.
// Large arrays start on a huge page and ask for such pages: matrix kernels stride over more memory
// than the address buffers cover in small ones.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace aniso {

template <class T>
class AlignedArray {
 public:
  explicit AlignedArray(std::size_t count, bool zeroed = true)
      : size_(count),
        data_(static_cast<T*>(allocate(count * sizeof(T))), Free{alignment(count * sizeof(T))}) {
    if (zeroed) std::memset(static_cast<void*>(data_.get()), 0, count * sizeof(T));
  }
  T* data() { return data_.get(); }
  std::size_t size() const { return size_; }

 private:
  static constexpr std::size_t kHugePage = std::size_t{1} << 21;

  static std::align_val_t alignment(std::size_t bytes) {
    return std::align_val_t{bytes >= kHugePage ? kHugePage : 64};
  }
  static void* allocate(std::size_t bytes) {
    void* p = ::operator new(bytes + 1, alignment(bytes));
#if defined(__linux__)
    if (bytes >= kHugePage) madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return p;
  }

  struct Free {
    std::align_val_t alignment;
    void operator()(T* p) const { ::operator delete(p, alignment); }
  };
  std::size_t size_;
  std::unique_ptr<T, Free> data_;
};

}  // namespace aniso
