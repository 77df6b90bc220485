// Running one function on several threads, each in the contract's floating point mode.
//
// An operator's work is cut into one share for each thread, so that what a thread reads was mostly written by itself,
// and shares into pieces. A thread takes the pieces of its own share one after the other, and then those that are left
// of other shares. Results do not depend on who computes a piece, and a thread that another process keeps from its
// processor holds up no more than the piece it has begun.
//
// A program keeps one team of threads for all its operators: every thread of the team calls the operators one after the
// other, and goes on to the next when all pieces of one are done, whether or not the other threads have come that far.
// That costs a fraction of starting threads for each operator.
//
// Where another process wants a thread's processor, the kernel takes it in the middle of a piece, for milliseconds, and
// all other threads wait for that piece. So a thread gives way by itself, between two pieces, a little before its time
// slice would end.
//
// Everything here but the team, whose functions are in threads.cpp, has internal linkage: this header is compiled into
// files of different instruction sets, and an inline function with external linkage would let the linker keep one copy,
// perhaps the AVX-512 one, for all of them.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>

#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#endif

namespace vimtrt {

using Clock = std::chrono::steady_clock;

struct WorkRange {
  int64_t begin;
  int64_t end;
};

// Piece `index` of a share.
struct Piece {
  int share;
  int64_t index;
};

// An operator's work as a team sees it: `shares` shares, at most as many as there are threads; pieces_of(context,
// share) pieces in each, `pieces` in all.
struct Work {
  int shares;
  int64_t pieces;
  int64_t (*pieces_of)(const void* context, int share);
  const void* context;
};
constexpr int64_t kMaxTeamCalls = 1 << 24;  // operators that a team may run

// Threads that run the same operators in the same order. The owner starts them, each with a TeamMember.
class Team {
 public:
  explicit Team(int threads);
  ~Team();

 private:
  friend class TeamMember;
  struct alignas(64) Share {
    std::atomic<uint64_t> next{0};  // the operator's number and the first piece that nobody has taken
  };
  std::unique_ptr<Share[]> shares_;
  alignas(64) std::atomic<uint32_t> done_{0};  // pieces, of all operators
  alignas(64) std::atomic<int> sleepers_{0};
};

// The calling thread's part in a team, until the end of the scope.
class TeamMember {
 public:
  TeamMember(Team& team, int worker, int threads);
  ~TeamMember();
  TeamMember(const TeamMember&) = delete;
  TeamMember& operator=(const TeamMember&) = delete;
  static TeamMember* current();  // null: the calling thread is in no team

  int worker() const;
  int threads() const;
  void begin(const Work& work);  // the next operator
  bool next(Piece& piece);       // false: none is left; what was given before is done
  void wait();                   // until all pieces of the operator are done

 private:
  bool take(int share, Piece& piece);
  bool is_untouched(int share) const;
  bool is_done() const;
  void yield_if_due();
  void report();

  Team& team_;
  const int worker_, threads_;
  Work work_{};
  uint32_t call_ = 0;         // operators begun
  uint32_t target_ = 0;       // what team_.done_ is when the operator is done
  uint32_t missed_call_ = 0;  // the last one in which the owner of a share did not come in time
  uint32_t finished_ = 0;     // pieces, that are not in team_.done_ yet
  bool holds_piece_ = false;
  int pieces_to_look_ = 1;                   // at the clock
  Clock::time_point looked_ = Clock::now();  // at the clock, last
  Clock::time_point slice_start_ = looked_;  // since when this thread has had its processor, as far as it knows
};

// Threads that wait for work and call it beside the thread that brings it.
class ThreadPool {
 public:
  ThreadPool();
  ~ThreadPool();  // waits for what its threads still do
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Calls work(0) here, and work(1) to work(threads - 1) on the pool's threads. Returns when work(0) has: a thread that
  // another process keeps from its processor may still be on its way through `work`, or come too late for it, so
  // work(0) must not end before all that counts is done.
  using Work = std::function<void(int worker)>;
  void run(int threads, const std::shared_ptr<const Work>& work);

 private:
  struct Shared;
  std::unique_ptr<Shared> shared_;
};

namespace {

// Round to nearest even, subnormals kept, exceptions masked, until the end of the scope. A host process (PyTorch's
// set_flush_denormal, a library built with -ffast-math) may have set something else.
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

// The worker's share of `total` items, in whole blocks of `block` items; shares differ by one block at most.
[[maybe_unused]] WorkRange work_range(int64_t total, int64_t block, int worker, int workers) {
  const int64_t blocks = (total + block - 1) / block;
  const int64_t begin = blocks * worker / workers * block;
  const int64_t end = blocks * (worker + 1) / workers * block;
  return {begin < total ? begin : total, end < total ? end : total};
}

int64_t pieces_in(int64_t items, int64_t piece) { return (items + piece - 1) / piece; }

// What cuts an operator's work: `Cut` has share(threads), shares(), pieces(), pieces_of(share) and item(piece), and for
// one thread alone advance(item), which makes the next item of the last one, the first of an empty one. A kernel's body
// gets one for each thread and draws from it until nothing is left.
template <class Cut>
class Pieces {
 public:
  Pieces(const Cut& cut, TeamMember* member) : cut_(cut), member_(member) {}

  bool next(typename Cut::Item& item) {
    if (member_ == nullptr) {
      if (!cut_.advance(last_)) return false;
      item = last_;
      return true;
    }
    Piece piece;
    if (!member_->next(piece)) return false;
    item = cut_.item(piece);
    return true;
  }

 private:
  const Cut& cut_;
  TeamMember* member_;
  typename Cut::Item last_{};  // without a team
};

// Calls body(worker, pieces) on each of `threads` threads, or fewer; returns when all pieces are done. In a team every
// thread must make the call. Outside of one, always `threads` are started, even where some have nothing to do: OpenMP
// would end the threads that a smaller number leaves over, and make them again for the next operator.
template <class Cut, class Body>
void run_workers(int threads, Cut cut, const Body& body) {
  if (TeamMember* member = TeamMember::current()) {
    cut.share(member->threads());
    const auto pieces_of = [](const void* context, int share) {
      return static_cast<const Cut*>(context)->pieces_of(share);
    };
    member->begin({cut.shares(), cut.pieces(), pieces_of, &cut});
    {
      const DefaultFloatMode mode;
      Pieces<Cut> pieces(cut, member);
      body(member->worker(), pieces);
    }
    member->wait();
    return;
  }
#ifdef _OPENMP
  if (threads > 1) {
    Team team(threads);
#pragma omp parallel num_threads(threads)
    {
      TeamMember member(team, omp_get_thread_num(), omp_get_num_threads());
      run_workers(threads, cut, body);
    }
    return;
  }
#endif
  const DefaultFloatMode mode;
  Pieces<Cut> pieces(cut, nullptr);
  body(0, pieces);
}

// [0, total) in pieces of `piece` items, in at most `most` shares.
class RangeCut {
 public:
  using Item = WorkRange;
  RangeCut(int64_t total, int64_t piece, int most = INT32_MAX) : total_(total), piece_(piece), shares_(most) {}

  void share(int threads) {
    if (threads < shares_) shares_ = threads;
  }
  int shares() const { return shares_; }
  int64_t pieces() const { return pieces_in(total_, piece_); }
  int64_t pieces_of(int share) const {
    const WorkRange range = work_range(total_, piece_, share, shares_);
    return pieces_in(range.end - range.begin, piece_);
  }
  bool advance(WorkRange& item) const {
    item = {item.end, item.end + piece_ < total_ ? item.end + piece_ : total_};
    return item.begin < total_;
  }
  WorkRange item(Piece piece) const {
    const int64_t begin = work_range(total_, piece_, piece.share, shares_).begin + piece.index * piece_;
    return {begin, begin + piece_ < total_ ? begin + piece_ : total_};
  }

 private:
  int64_t total_, piece_;
  int shares_;
};

struct WorkTile {
  WorkRange rows;
  WorkRange columns;
};

// A matrix cut both ways, in whole blocks, one rectangle for each thread, so that the largest rectangle is as small as
// it can be: tall matrices are cut by rows, a single row by columns. A piece is a panel of the rectangle's rows by a
// block of columns, panel by panel. Cuts by rows are taken where others would win less than kRowsAreWorth percent: what
// reads the matrix is mostly cut by rows too, and finds them in its own processor's cache.
class TileCut {
 public:
  using Item = WorkTile;
  TileCut(int64_t rows, int64_t row_block, int64_t panel_rows, int64_t columns, int64_t column_block)
      : rows_(rows), row_block_(row_block), panel_rows_(panel_rows), columns_(columns), column_block_(column_block) {}

  void share(int threads) {
    constexpr int64_t kRowsAreWorth = 9;
    const int64_t row_blocks = pieces_in(rows_, row_block_), column_blocks = pieces_in(columns_, column_block_);
    int64_t best_work = 0;
    for (int cuts = 1; cuts <= threads; ++cuts) {
      if (threads % cuts != 0) continue;
      const int64_t work = pieces_in(row_blocks, cuts) * pieces_in(column_blocks, threads / cuts);
      if (best_work == 0 || work * 100 < best_work * (100 + kRowsAreWorth)) {  // more cuts by rows each time
        best_work = work;
        row_cuts_ = cuts;
      }
    }
    shares_ = threads;
  }
  int shares() const { return shares_; }
  int64_t pieces() const {
    int64_t panels = 0;
    for (int cut = 0; cut < row_cuts_; ++cut) panels += panels_of(cut);
    return panels * pieces_in(columns_, column_block_);
  }
  int64_t pieces_of(int share) const { return panels_of(share) * pieces_in(length(columns_of(share)), column_block_); }
  bool advance(WorkTile& item) const {
    if (item.rows.end == 0 || item.columns.end == columns_) {
      item.rows = {item.rows.end, item.rows.end + panel_rows_ < rows_ ? item.rows.end + panel_rows_ : rows_};
      item.columns.end = 0;
    }
    item.columns = {item.columns.end,
                    item.columns.end + column_block_ < columns_ ? item.columns.end + column_block_ : columns_};
    return item.rows.begin < rows_;
  }
  WorkTile item(Piece piece) const {
    const WorkRange rows = rows_of(piece.share), columns = columns_of(piece.share);
    const int64_t across = pieces_in(length(columns), column_block_);
    const int64_t row = rows.begin + piece.index / across * panel_rows_;
    const int64_t column = columns.begin + piece.index % across * column_block_;
    return {{row, row + panel_rows_ < rows.end ? row + panel_rows_ : rows.end},
            {column, column + column_block_ < columns.end ? column + column_block_ : columns.end}};
  }

 private:
  static int64_t length(WorkRange range) { return range.end - range.begin; }
  WorkRange rows_of(int share) const { return work_range(rows_, row_block_, share % row_cuts_, row_cuts_); }
  WorkRange columns_of(int share) const {
    return work_range(columns_, column_block_, share / row_cuts_, shares_ / row_cuts_);
  }
  int64_t panels_of(int share) const { return pieces_in(length(rows_of(share)), panel_rows_); }

  int64_t rows_, row_block_, panel_rows_, columns_, column_block_;
  int shares_ = 1, row_cuts_ = 1;
};

}  // namespace
}  // namespace vimtrt
