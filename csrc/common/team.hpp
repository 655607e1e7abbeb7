// A barrier for the few threads of one kernel call: phases are short, so waiting threads spin.
#pragma once

#include <sched.h>

#include <cstdint>

namespace aniso {

/// Shared by `members` threads; plain data, so that kernels of every instruction set can use it.
struct Team {
  int members;
  int arrived = 0;
  int phase = 0;
  int64_t next_item = 0;
};

/// Waits for all members; the item counter starts again at 0.
static inline __attribute__((always_inline)) void team_wait(Team& team) {
  const int phase = __atomic_load_n(&team.phase, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&team.arrived, 1, __ATOMIC_ACQ_REL) == team.members) {
    team.arrived = 0;
    team.next_item = 0;
    __atomic_store_n(&team.phase, phase + 1, __ATOMIC_RELEASE);
    return;
  }
  for (int spins = 0; __atomic_load_n(&team.phase, __ATOMIC_ACQUIRE) == phase; ++spins) {
    if (spins < 4096) {
      __builtin_ia32_pause();
    } else {
      sched_yield();
    }
  }
}

/// The next of the items that the members share out between two waits.
static inline __attribute__((always_inline)) int64_t team_take(Team& team) {
  return __atomic_fetch_add(&team.next_item, 1, __ATOMIC_RELAXED);
}

}  // namespace aniso
