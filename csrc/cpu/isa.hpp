// Which instruction set the CPU kernels use, chosen once at run time.
#pragma once

namespace aniso::cpu {

enum class Isa : int { baseline, avx2, avx512 };

/// The widest instruction set that both this build and this processor have.
Isa best_isa();

/// Its name: "baseline", "avx2" or "avx512".
const char* isa_name(Isa isa);

}  // namespace aniso::cpu
