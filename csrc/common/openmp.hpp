// The threads of the OpenMP runtime that the process has loaded, which are torch's. They spin for
// milliseconds after torch's last work, and threads of ours beside them would get half a core each.
#pragma once

#include <type_traits>

#if __has_include(<dlfcn.h>) && __has_include(<pthread.h>)
#include <dlfcn.h>
#include <pthread.h>
#define ANISO_DLFCN
#endif

namespace aniso {

/// Found by name when it is first used, as nothing is linked against it: null where there is none.
/// GNU's names, which the runtimes of LLVM and Intel have too.
struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread)() = nullptr;
  int (*threads)() = nullptr;
};

#ifdef ANISO_DLFCN
/// Whether this process was forked: the threads stayed behind, and OpenMP would wait for them.
inline bool& forked() {
  static bool value = false;
  return value;
}

inline OpenMP find_openmp() {
  OpenMP found;
  const auto find = [](const char* name, auto& function) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(RTLD_DEFAULT, name));
    return function != nullptr;
  };
  const bool whole = find("omp_get_thread_num", found.thread) &&
                     find("omp_get_num_threads", found.threads) &&
                     find("GOMP_parallel", found.parallel);
  if (!whole || pthread_atfork(nullptr, nullptr, [] { forked() = true; }) != 0) return {};
  return found;
}
#endif

/// run(0) … run(parts - 1), a thread each; false, and nothing done, where OpenMP has not as many.
template <class Run>
bool run_on_openmp(int parts, const Run& run) {
#ifdef ANISO_DLFCN
  static const OpenMP openmp = find_openmp();
  if (openmp.parallel == nullptr || forked()) return false;
  struct Region {
    const OpenMP& openmp;
    const Run& run;
    int parts;
    bool ran;
  } region{openmp, run, parts, false};
  openmp.parallel(
      [](void* data) {
        Region& r = *static_cast<Region*>(data);
        if (r.openmp.threads() != r.parts) return;
        const int part = r.openmp.thread();
        if (part == 0) r.ran = true;
        r.run(part);
      },
      &region, static_cast<unsigned>(parts), 0);
  return region.ran;
#else
  (void)parts, (void)run;
  return false;
#endif
}

}  // namespace aniso
