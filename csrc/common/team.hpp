// A barrier for the few threads of one kernel call: phases are short, so waiting threads spin, and
// sleep only when the others are long in coming (the machine has more to do than this).
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace aniso {

/// Shared by `members` threads; plain data, so that kernels of every instruction set can use it.
struct Team {
  int members;
  int arrived = 0;
  int phase = 0;
  int64_t next_item = 0;
};

static inline __attribute__((always_inline)) void team_sleep(Team& team, int phase) {
#if defined(__linux__)
  syscall(SYS_futex, &team.phase, FUTEX_WAIT_PRIVATE, phase, nullptr, nullptr, 0);
#else
  (void)team, (void)phase;
#endif
}

static inline __attribute__((always_inline)) void team_wake(Team& team) {
#if defined(__linux__)
  syscall(SYS_futex, &team.phase, FUTEX_WAKE_PRIVATE, team.members, nullptr, nullptr, 0);
#else
  (void)team;
#endif
}

/// Waits for all members; the item counter starts again at 0.
static inline __attribute__((always_inline)) void team_wait(Team& team) {
  constexpr int SPINS = 500;  // some 20 us
  const int phase = __atomic_load_n(&team.phase, __ATOMIC_ACQUIRE);
  if (__atomic_add_fetch(&team.arrived, 1, __ATOMIC_ACQ_REL) == team.members) {
    team.arrived = 0;
    team.next_item = 0;
    __atomic_store_n(&team.phase, phase + 1, __ATOMIC_RELEASE);
    team_wake(team);
    return;
  }
  for (int spins = 0; __atomic_load_n(&team.phase, __ATOMIC_ACQUIRE) == phase; ++spins) {
    if (spins >= SPINS) team_sleep(team, phase);
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }
}

/// The next of the items that the members share out between two waits.
static inline __attribute__((always_inline)) int64_t team_take(Team& team) {
  return __atomic_fetch_add(&team.next_item, 1, __ATOMIC_RELAXED);
}

}  // namespace aniso
