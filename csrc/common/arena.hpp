// Scratch memory that is kept between calls: fresh pages cost more than the work of a small call.
#pragma once

#include <algorithm>
#include <atomic>
#include <memory>

#include "common/aligned.hpp"

namespace aniso {

/// One piece of memory, given out in arrays. What they hold at first is arbitrary. Any number of
/// threads may have an arena each; one of up to ARENA_KEPT_BYTES is kept for the next call.
class Arena {
 public:
  static constexpr std::size_t ARENA_KEPT_BYTES = std::size_t{320} << 20;

  explicit Arena(std::size_t bytes) : memory_(kept().exchange(nullptr)) {
    if (memory_ != nullptr && memory_->size() >= bytes) return;
    memory_.reset();
    memory_ = std::make_unique<AlignedArray<char>>(bytes, false);
  }
  ~Arena() {
    if (memory_->size() > ARENA_KEPT_BYTES) return;
    const std::unique_ptr<AlignedArray<char>> other(kept().exchange(memory_.release()));
  }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// An array that starts on a cache line.
  template <class T>
  T* array(std::size_t count) {
    T* const begin = reinterpret_cast<T*>(memory_->data() + used_);
    used_ += rounded(count * sizeof(T));
    return begin;
  }
  template <class T>
  T* zeros(std::size_t count) {
    T* const begin = array<T>(count);
    std::fill(begin, begin + count, T{});
    return begin;
  }
  /// What an array of so many bytes takes.
  static constexpr std::size_t rounded(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

 private:
  static std::atomic<AlignedArray<char>*>& kept() {
    static std::atomic<AlignedArray<char>*> memory{nullptr};
    return memory;
  }

  std::unique_ptr<AlignedArray<char>> memory_;
  std::size_t used_ = 0;
};

}  // namespace aniso
