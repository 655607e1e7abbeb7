// What spectral_map.cpp calls, once per instruction set.
#pragma once

#include "cpu/spectral_map.hpp"

namespace aniso::cpu {

#define ANISO_SPECTRAL_INNER                 \
  /** Matrices [begin, end) of the batch. */ \
  void spectral_inner_part(const SpectralInnerView& view, int64_t begin, int64_t end);
namespace baseline {
ANISO_SPECTRAL_INNER
}
namespace avx2 {
ANISO_SPECTRAL_INNER
}
namespace avx512 {
ANISO_SPECTRAL_INNER
}
#undef ANISO_SPECTRAL_INNER

}  // namespace aniso::cpu
