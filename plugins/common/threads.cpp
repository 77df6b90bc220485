#include "plugins/common/threads.h"

#include <thread>

namespace vimtrt {
namespace {

thread_local Team* team_of_thread = nullptr;
thread_local int worker_of_thread = 0;
thread_local int workers_of_team = 0;

// Some tens of microseconds: what an operator's shares differ by. Longer, and another process may want the processor.
constexpr int kSpins = 2000;

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

Team* current_team() { return team_of_thread; }

int team_worker() { return worker_of_thread; }

int team_workers() { return workers_of_team; }

void Team::wait() {
  const unsigned round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == workers_of_team) {
    arrived_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
    if (spins < kSpins) {
      relax();
    } else {
      std::this_thread::yield();
    }
  }
}

TeamScope::TeamScope(Team& team, int worker, int workers) {
  team_of_thread = &team;
  worker_of_thread = worker;
  workers_of_team = workers;
}

TeamScope::~TeamScope() { team_of_thread = nullptr; }

}  // namespace vimtrt
