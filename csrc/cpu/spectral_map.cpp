#include "cpu/spectral_map.hpp"

#include <algorithm>

#include "common/parallel.hpp"
#include "cpu/spectral_map_kernel.hpp"

namespace aniso::cpu {
namespace {

using PartFunction = void (*)(const SpectralInnerView&, int64_t, int64_t);

PartFunction part_function([[maybe_unused]] Isa isa) {
#ifdef ANISO_X86
  if (isa == Isa::avx512) return avx512::spectral_inner_part;
  if (isa == Isa::avx2) return avx2::spectral_inner_part;
#endif
  return baseline::spectral_inner_part;
}

// Below this many entries per thread, starting the thread (~20 us) costs more than it saves.
constexpr int64_t kEntriesPerThread = int64_t{1} << 15;

}  // namespace

void spectral_inner(const SpectralInnerView& view, int threads, Isa isa) {
  const int64_t useful = std::min(view.b, view.b * view.k * view.k / kEntriesPerThread);
  const int parts = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, useful)));
  const PartFunction run = part_function(isa);
  parallel_parts(view.b, parts, [&](int, int64_t begin, int64_t end) { run(view, begin, end); });
}

}  // namespace aniso::cpu
