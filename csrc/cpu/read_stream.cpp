#include "cpu/read_stream.hpp"

#include <vector>

#include "common/parallel.hpp"

namespace aniso::cpu {

uint64_t read_stream(const void* data, int64_t bytes, int threads) {
  auto* const digest = ANISO_FOR_ISA(best_isa(), digest_of);
  std::vector<uint64_t> digests(threads, 0);
  const char* base = static_cast<const char*>(data);
  parallel_parts(bytes, threads, [&](int part, int64_t begin, int64_t end) {
    digests[part] = digest(base + begin, end - begin);
  });
  uint64_t all = 0;
  for (uint64_t part : digests) all ^= part;
  return all;
}

}  // namespace aniso::cpu
