#include "cpu/batched_svd.hpp"

#include <algorithm>
#include <cstring>

#include "common/arena.hpp"
#include "common/parallel.hpp"
#include "common/team.hpp"
#include "cpu/batched_svd_kernel.hpp"

namespace aniso::cpu {
namespace {

// Below this many multiplications per thread, starting the thread (~20 us) costs more than it
// saves.
constexpr int64_t kWorkPerThread = int64_t{1} << 18;

}  // namespace

void batched_svd(const MatricesView& x, const SvdView& out, bool high, int threads, Isa isa) {
  const int64_t p = std::min(x.m, x.n), q = std::max(x.m, x.n);
  const int64_t useful = std::min(x.b, x.b * p * p * q / kWorkPerThread + 1);
  const int count = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, useful)));
  auto* const run = ANISO_FOR_ISA(isa, batched_svd_one);
  const std::size_t bytes = Arena::rounded(batched_svd_scratch(p, q) * sizeof(double));
  Arena arena(count * bytes);
  char* const scratch = arena.array<char>(count * bytes);
  Team team{count};
  parallel_parts(count, count, [&](int member, int64_t, int64_t) {
    auto* const own = reinterpret_cast<double*>(scratch + member * bytes);
    std::memset(own, 0, bytes);
    for (int64_t index; (index = team_take(team)) < x.b;) run(x, index, out, high, own);
  });
}

}  // namespace aniso::cpu
