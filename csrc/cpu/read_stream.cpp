#include "cpu/read_stream.hpp"

#include <cstring>
#include <vector>

#include "common/parallel.hpp"

namespace aniso::cpu {
namespace {

typedef uint64_t u64x8 __attribute__((vector_size(64)));
constexpr int64_t BLOCK = 4 * sizeof(u64x8);

uint64_t digest_of(const char* data, int64_t bytes) {
  u64x8 acc[4] = {};
  int64_t at = 0;
  for (; at + BLOCK <= bytes; at += BLOCK) {
    for (int i = 0; i < 4; ++i) {
      u64x8 word;
      std::memcpy(&word, data + at + i * sizeof(u64x8), sizeof word);
      acc[i] ^= word;
    }
  }
  uint64_t digest = 0;
  for (int i = 0; i < 8; ++i) digest ^= acc[0][i] ^ acc[1][i] ^ acc[2][i] ^ acc[3][i];
  for (; at < bytes; ++at) digest ^= static_cast<unsigned char>(data[at]);
  return digest;
}

}  // namespace

uint64_t read_stream(const void* data, int64_t bytes, int threads) {
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
