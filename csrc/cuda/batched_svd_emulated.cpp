#include "cuda/batched_svd_emulated.hpp"

#include <algorithm>
#include <vector>

#include "common/parallel.hpp"
#include "cuda/batched_svd_matrix.hpp"

namespace aniso::cuda {
namespace {

template <bool kNear>
void emulate(const MatricesView& x, const SvdView& out, int threads) {
  const int p = static_cast<int>(std::min(x.m, x.n));
  const int64_t q = std::max(x.m, x.n);
  const int64_t far = svd::workspace_doubles(p, q, out.k, out.left != nullptr, kNear);
  // A value that is read before it is written shows as not-a-number.
  std::vector<double> workspace(far, std::nan("")),
      own(svd::own_doubles(svd::kMostOrder, p, svd::HostTeam::kWarps, kNear), std::nan(""));
  std::vector<double> exchange(svd::kSlots * svd::HostTeam::kWarps), lanes(threads);
  std::vector<Team> warps(svd::HostTeam::kWarps, Team{threads / svd::HostTeam::kWarps});
  svd::HostShared shared{Team{threads}, warps.data(), exchange.data(), lanes.data(), own.data()};
  const svd::Job job{x,
                     out,
                     p,
                     static_cast<int>(q),
                     static_cast<int>(out.k),
                     workspace.data(),
                     far,
                     svd::gram_error(p, q)};
  parallel_parts(threads, threads, [&](int part, int64_t, int64_t) {
    const svd::HostTeam team{&shared, part, threads};
    svd::Factorization<svd::kMostOrder, kNear, svd::HostTeam> matrix(team, job, 0);
    for (int64_t index = 0; index < x.b; ++index) matrix.run(index);
  });
}

}  // namespace

void batched_svd_emulated(const MatricesView& x, const SvdView& out, int threads, bool near) {
  near ? emulate<true>(x, out, threads) : emulate<false>(x, out, threads);
}

}  // namespace aniso::cuda
