#include "cpu/isa.hpp"

#include <stdexcept>

#if defined(ANISO_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace aniso::cpu {

Isa best_isa() {
#ifdef ANISO_X86
  static const Isa best = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      return Isa::avx512;
    }
    // Every processor with AVX2 has F16C; compilers before GCC 11 cannot ask for it by name.
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
    return Isa::baseline;
  }();
  return best;
#else
  return Isa::baseline;
#endif
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

Isa isa_named(const std::string& name) {
  for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (name == isa_name(isa) && isa <= best_isa()) return isa;
  }
  throw std::invalid_argument("this processor or build has no instruction set '" + name + "'");
}

bool has_amx() {
#if defined(ANISO_AMX)
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
    constexpr unsigned kTiles = 1u << 24, kInt8 = 1u << 25, kBf16 = 1u << 22;
    constexpr unsigned kAvx512bw = 1u << 30;
    if ((d & (kTiles | kInt8 | kBf16)) != (kTiles | kInt8 | kBf16)) return false;
    if ((b & kAvx512bw) == 0) return false;
    // The system hands out the tile registers on request only (Linux, arch_prctl(2)).
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return has;
#else
  return false;
#endif
}

}  // namespace aniso::cpu
