// The read bandwidth this machine really has: the ceiling of every one-pass kernel.
#pragma once

#include <cstdint>

namespace aniso::cpu {

/// Reads all bytes once on `threads` threads and returns a digest, so that no load can be dropped.
uint64_t read_stream(const void* data, int64_t bytes, int threads);

// One thread's part, once per instruction set.
#define ANISO_DECLARE_PART(isa)                        \
  namespace isa {                                      \
  uint64_t digest_of(const char* data, int64_t bytes); \
  }
ANISO_DECLARE_PART(baseline)
ANISO_DECLARE_PART(avx2)
ANISO_DECLARE_PART(avx512)
#undef ANISO_DECLARE_PART

}  // namespace aniso::cpu
