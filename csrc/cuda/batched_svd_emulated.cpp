#include "cuda/batched_svd_emulated.hpp"

#include <vector>

#include "common/parallel.hpp"
#include "cuda/batched_svd_matrix.hpp"

namespace aniso::cuda {
namespace {

template <bool kNear>
void emulate(const MatricesView& x, const SvdView& out, SvdEffort effort, int threads) {
  svd::Job job = svd::job_of(x, out, kNear, effort);
  // A value that is read before it is written shows as not-a-number.
  std::vector<double> workspace(job.workspace_doubles, std::nan("")),
      own(svd::own_doubles(svd::kMostOrder, job.p, svd::HostTeam::kWarps, kNear, job.rotate),
          std::nan(""));
  job.workspace = workspace.data();
  std::vector<double> exchange(svd::kSlots * svd::HostTeam::kWarps), lanes(threads);
  std::vector<Team> warps(svd::HostTeam::kWarps, Team{threads / svd::HostTeam::kWarps});
  svd::HostShared shared{Team{threads}, warps.data(), exchange.data(), lanes.data(), own.data()};
  parallel_parts(threads, threads, [&](int part, int64_t, int64_t) {
    const svd::HostTeam team{&shared, part, threads};
    svd::Factorization<svd::kMostOrder, kNear, svd::HostTeam> matrix(team, job, 0);
    for (int64_t index = 0; index < x.b; ++index) matrix.run(index);
  });
}

}  // namespace

void batched_svd_emulated(const MatricesView& x, const SvdView& out, SvdEffort effort, int threads,
                          bool near) {
  near ? emulate<true>(x, out, effort, threads) : emulate<false>(x, out, effort, threads);
}

}  // namespace aniso::cuda
