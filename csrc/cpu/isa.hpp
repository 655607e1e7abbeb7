// Which instruction set the CPU kernels use, chosen once at run time.
#pragma once

#include <string>

namespace aniso::cpu {

enum class Isa : int { baseline, avx2, avx512 };

/// The widest instruction set that both this build and this processor have.
Isa best_isa();

/// Its name: "baseline", "avx2" or "avx512".
const char* isa_name(Isa isa);

/// The set of that name; std::invalid_argument where this processor or build lacks it.
Isa isa_named(const std::string& name);

/// Whether this machine has the matrix unit (AMX) and the system lets us use it.
bool has_amx();

/// Declares functions that are compiled once per instruction set, in a namespace of its own.
#define ANISO_PER_ISA(...) \
  namespace baseline {     \
  __VA_ARGS__              \
  }                        \
  namespace avx2 {         \
  __VA_ARGS__              \
  }                        \
  namespace avx512 {       \
  __VA_ARGS__              \
  }

/// The one of these that is compiled for `isa`.
#if defined(ANISO_X86)
#define ANISO_FOR_ISA(isa, function)                     \
  ((isa) == ::aniso::cpu::Isa::avx512 ? avx512::function \
   : (isa) == ::aniso::cpu::Isa::avx2 ? avx2::function   \
                                      : baseline::function)
#else
#define ANISO_FOR_ISA(isa, function) (static_cast<void>(isa), baseline::function)
#endif

}  // namespace aniso::cpu
