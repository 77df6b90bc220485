// Running one function on several threads, each in the contract's floating point mode.
//
// A program keeps one team of threads for all its operators: every thread of the team calls the operators one after the other, and
// run_workers, which starts threads elsewhere, only gives each its share there and lets them wait for each other. That costs a fraction of
// starting them.
//
// Everything here but the team has internal linkage: this header is compiled into files of different instruction sets, and an inline
// function with external linkage would let the linker keep one copy, perhaps the AVX-512 one, for all of them.
#pragma once

#include <atomic>
#include <cstdint>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

namespace vimtrt {

// Threads that run the same calls of run_workers. The owner starts them, each with a TeamScope.
class Team {
 public:
  void wait();  // until all threads of the team are here

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> round_{0};
};

class TeamScope {
 public:
  TeamScope(Team& team, int worker, int workers);  // for the calling thread, one of `workers`
  ~TeamScope();
  TeamScope(const TeamScope&) = delete;
  TeamScope& operator=(const TeamScope&) = delete;
};

Team* current_team();  // of the calling thread; null: none
int team_worker();
int team_workers();

namespace {

// Round to nearest even, subnormals kept, exceptions masked, until the end of the scope. A host process (PyTorch's set_flush_denormal,
// a library built with -ffast-math) may have set something else.
class DefaultFloatMode {
 public:
#if defined(__x86_64__) || defined(__i386__)
  DefaultFloatMode() : saved_(_mm_getcsr()) { set(0x1f80); }
  ~DefaultFloatMode() { set(saved_); }
#elif defined(__aarch64__)
  DefaultFloatMode() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    set(0);
  }
  ~DefaultFloatMode() { set(saved_); }
#endif
  DefaultFloatMode(const DefaultFloatMode&) = delete;
  DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

 private:
#if defined(__x86_64__) || defined(__i386__)
  static void set(unsigned value) {
    asm volatile("" ::: "memory");
    _mm_setcsr(value);
    asm volatile("" ::: "memory");
  }
  unsigned saved_;
#elif defined(__aarch64__)
  static void set(uint64_t value) { asm volatile("msr fpcr, %0" ::"r"(value) : "memory"); }
  uint64_t saved_;
#endif
};

// Calls body(worker, workers) once on each of `workers` threads: at most `useful`, and perhaps fewer than `threads`; returns when all are
// done. In a team every thread must make the call. Outside of one, always `threads` are started, even where some have nothing to do: OpenMP
// would end the threads that a smaller number leaves over, and make them again for the next operator.
template <class Body>
void run_workers(int threads, int useful, const Body& body) {
  if (Team* team = current_team()) {
    const int worker = team_worker(), size = team_workers(), workers = useful < size ? useful : size;
    if (worker < workers) {
      const DefaultFloatMode mode;
      body(worker, workers);
    }
    team->wait();
    return;
  }
#ifdef _OPENMP
  if (threads > 1 && useful > 1) {
#pragma omp parallel num_threads(threads)
    {
      const int team = omp_get_num_threads(), workers = useful < team ? useful : team;
      if (omp_get_thread_num() < workers) {
        const DefaultFloatMode mode;
        body(omp_get_thread_num(), workers);
      }
    }
    return;
  }
#endif
  (void)useful;
  (void)threads;
  const DefaultFloatMode mode;
  body(0, 1);
}

template <class Body>
void run_workers(int threads, const Body& body) {
  run_workers(threads, threads, body);
}

struct WorkRange {
  int64_t begin;
  int64_t end;
};

// The worker's share of `total` items, in whole blocks of `block` items; shares differ by one block at most.
[[maybe_unused]] WorkRange work_range(int64_t total, int64_t block, int worker, int workers) {
  const int64_t blocks = (total + block - 1) / block;
  const int64_t begin = blocks * worker / workers * block;
  const int64_t end = blocks * (worker + 1) / workers * block;
  return {begin < total ? begin : total, end < total ? end : total};
}

struct WorkTile {
  WorkRange rows;
  WorkRange columns;
};

// The worker's rectangle of a matrix cut both ways, in whole blocks, so that the largest rectangle is as small as it can be: tall
// matrices are cut by rows, a single row by columns. Cuts by rows are taken where others would win less than kRowsAreWorth percent: what
// reads the matrix is mostly cut by rows too, and finds them in its own processor's cache.
constexpr int64_t kRowsAreWorth = 9;

[[maybe_unused]] WorkTile work_tile(int64_t rows, int64_t row_block, int64_t columns, int64_t column_block, int worker, int workers) {
  const int64_t row_blocks = (rows + row_block - 1) / row_block;
  const int64_t column_blocks = (columns + column_block - 1) / column_block;
  int best_cuts = 1;
  int64_t best_work = 0;
  for (int cuts = 1; cuts <= workers; ++cuts) {
    if (workers % cuts != 0) continue;
    const int64_t column_cuts = workers / cuts;
    const int64_t work = ((row_blocks + cuts - 1) / cuts) * ((column_blocks + column_cuts - 1) / column_cuts);
    if (best_work == 0 || work * 100 < best_work * (100 + kRowsAreWorth)) {  // more cuts by rows with every turn
      best_work = work;
      best_cuts = cuts;
    }
  }
  return {work_range(rows, row_block, worker % best_cuts, best_cuts),
          work_range(columns, column_block, worker / best_cuts, workers / best_cuts)};
}

}  // namespace
}  // namespace vimtrt
