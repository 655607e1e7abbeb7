#include "cpu/read_stream.hpp"

#include <vector>

#include "common/parallel.hpp"
#include "cpu/isa.hpp"

namespace aniso::cpu {
namespace {

using DigestFunction = uint64_t (*)(const char*, int64_t);

DigestFunction digest_function([[maybe_unused]] Isa isa) {
#ifdef ANISO_X86
  if (isa == Isa::avx512) return avx512::digest_of;
  if (isa == Isa::avx2) return avx2::digest_of;
#endif
  return baseline::digest_of;
}

}  // namespace

uint64_t read_stream(const void* data, int64_t bytes, int threads) {
  const DigestFunction digest_of = digest_function(best_isa());
  std::vector<uint64_t> digests(threads, 0);
  const char* base = static_cast<const char*>(data);
  parallel_parts(bytes, threads, [&](int part, int64_t begin, int64_t end) {
    digests[part] = digest_of(base + begin, end - begin);
  });
  uint64_t digest = 0;
  for (uint64_t part : digests) digest ^= part;
  return digest;
}

}  // namespace aniso::cpu
