#include "cpu/isa.hpp"

#include <stdexcept>

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

}  // namespace aniso::cpu
