// Splits a range over threads; the caller's thread works too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace aniso {

/// Calls body(part, begin, end) for `parts` contiguous parts of [0, n), one thread each.
/// The split depends on n and parts alone, so sums taken per part are reproducible.
template <class Body>
void parallel_parts(int64_t n, int parts, const Body& body) {
  const auto bound = [&](int part) {
    return n / parts * part + std::min<int64_t>(part, n % parts);
  };
  std::vector<std::thread> workers;
  workers.reserve(parts);
  for (int part = 1; part < parts; ++part) {
    workers.emplace_back([&, part] { body(part, bound(part), bound(part + 1)); });
  }
  body(0, bound(0), bound(1));
  for (auto& worker : workers) worker.join();
}

}  // namespace aniso
