// The read bandwidth this machine really has: the ceiling of every one-pass kernel.
#pragma once

#include <cstdint>

#include "cpu/isa.hpp"

namespace aniso::cpu {

/// Reads all bytes once on `threads` threads and returns a digest, so that no load can be dropped.
uint64_t read_stream(const void* data, int64_t bytes, int threads);

/// One thread's part.
ANISO_PER_ISA(uint64_t digest_of(const char* data, int64_t bytes);)

}  // namespace aniso::cpu
