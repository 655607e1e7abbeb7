// Splits a range over threads; the caller's thread works too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#include "common/openmp.hpp"

namespace aniso {

/// Calls body(part, begin, end) for `parts` contiguous parts of [0, n), one thread each, all at the
/// same time. The split depends on n and parts alone, so sums taken per part are reproducible.
template <class Body>
void parallel_parts(int64_t n, int parts, const Body& body) {
  const auto run = [&](int part) {
    const auto bound = [&](int i) { return n / parts * i + std::min<int64_t>(i, n % parts); };
    body(part, bound(part), bound(part + 1));
  };
  if (parts == 1) return run(0);
  if (run_on_openmp(parts, run)) return;
  std::vector<std::thread> workers;
  workers.reserve(parts);
  for (int part = 1; part < parts; ++part) workers.emplace_back([&, part] { run(part); });
  run(0);
  for (auto& worker : workers) worker.join();
}

}  // namespace aniso
