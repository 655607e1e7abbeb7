#include "cpu/spectral_map.hpp"

#include <algorithm>

#include "common/arena.hpp"
#include "common/parallel.hpp"
#include "common/team.hpp"
#include "cpu/spectral_map_kernel.hpp"

namespace aniso::cpu {
namespace {

// Below this many multiplications per thread, starting the thread (~20 us) costs more than it
// saves.
constexpr int64_t kWorkPerThread = int64_t{1} << 18;

/// body(index, scratch) for every matrix, each thread with `doubles` of scratch.
template <class Body>
void each_matrix(const MatricesView& x, int64_t doubles, int threads, const Body& body) {
  const int64_t p = std::min(x.m, x.n), q = std::max(x.m, x.n);
  const int64_t useful = std::min(x.b, x.b * p * p * q / kWorkPerThread + 1);
  const int count = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, useful)));
  const int64_t stride = (doubles + 7) / 8 * 8;
  Arena arena(static_cast<std::size_t>(count * stride) * sizeof(double));
  double* const shared = arena.array<double>(static_cast<std::size_t>(count * stride));
  Team team{count};
  parallel_parts(count, count, [&](int part, int64_t, int64_t) {
    double* const scratch = shared + part * stride;
    for (int64_t index; (index = team_take(team)) < x.b;) body(index, scratch);
  });
}

int64_t map_scratch(const MatricesView& x) {
  return spectral_map_scratch(x.m, x.n, x.dtype == DType::f64);
}

}  // namespace

void spectral_factors(const MatricesView& x, const uint8_t* mask, const SpectralFactors& out,
                      int8_t* methods, int threads, Isa isa) {
  auto* const one = ANISO_FOR_ISA(isa, spectral_factors_one);
  each_matrix(x, spectral_factors_scratch(x.m, x.n), threads,
              [&](int64_t index, double* scratch) { one(x, mask, index, out, methods, scratch); });
}

void spectral_map(const SpectralMapView& view, int threads, Isa isa) {
  auto* const one = ANISO_FOR_ISA(isa, spectral_map_one);
  each_matrix(view.x, map_scratch(view.x), threads,
              [&](int64_t index, double* scratch) { one(view, index, scratch); });
}

void spectral_map_backward(const SpectralMapView& view, const SpectralGradient& gradient,
                           int threads, Isa isa) {
  auto* const one = ANISO_FOR_ISA(isa, spectral_map_backward_one);
  each_matrix(view.x, map_scratch(view.x), threads,
              [&](int64_t index, double* scratch) { one(view, gradient, index, scratch); });
}

}  // namespace aniso::cpu
