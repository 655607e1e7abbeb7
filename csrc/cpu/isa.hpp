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

}  // namespace aniso::cpu
