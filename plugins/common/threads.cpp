#include "plugins/common/threads.h"

#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace vimtrt {
namespace {

constexpr int kPieceBits = 40;
constexpr uint64_t kPieceMask = (uint64_t{1} << kPieceBits) - 1;

// How long a thread waits for the last pieces before it sleeps: longer than a piece takes, so that with a
// processor for each thread none sleeps. Sleeping leaves the processor to a thread that has begun a piece and
// waits behind another process.
constexpr std::chrono::microseconds kSpin{50};

// How long a thread leaves a share alone whose owner has not come yet: what the owner wrote lies in the owner's cache.
// Not at all where an owner did not come to the operator before either.
constexpr std::chrono::microseconds kGrace{2};

// How long a thread computes before it gives way: a little less than a time slice of a Linux whose clock ticks 250
// times a second. Of 0.7, 1.3, 2 and 3 ms it is the best beside a busy process
// (docs/measurements/2026-11-28-busy-machine.md). With a processor of its own a thread goes on at once.
constexpr std::chrono::microseconds kTimeSlice{2000};

// A piece never takes so long: the thread has been without a processor, and has just got one.
constexpr std::chrono::microseconds kPreempted{1000};

// Time between two looks at the clock, about.
constexpr std::chrono::microseconds kLook{100};

thread_local TeamMember* member_of_thread = nullptr;

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Until wake is called, if `word` still holds `value`; or for no reason.
void sleep_on(std::atomic<uint32_t>& word, uint32_t value) {
#ifdef __linux__
  static_assert(sizeof word == sizeof(uint32_t), "a futex is 32 bits");
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  (void)word, (void)value;
  std::this_thread::yield();
#endif
}

void wake_all(std::atomic<uint32_t>& word) {
#ifdef __linux__
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#else
  (void)word;
#endif
}

}  // namespace

Team::Team(int threads) : shares_(new Share[static_cast<size_t>(threads)]) {}

Team::~Team() = default;

TeamMember::TeamMember(Team& team, int worker, int threads) : team_(team), worker_(worker), threads_(threads) {
  member_of_thread = this;
}

TeamMember::~TeamMember() { member_of_thread = nullptr; }

TeamMember* TeamMember::current() { return member_of_thread; }

int TeamMember::worker() const { return worker_; }

int TeamMember::threads() const { return threads_; }

void TeamMember::begin(const Work& work) {
  work_ = work;
  ++call_;
  target_ += static_cast<uint32_t>(work.pieces);
}

// All threads count the same pieces, in the same order: less than 2^31 lie between any two of them.
bool TeamMember::is_done() const {
  return static_cast<int32_t>(team_.done_.load(std::memory_order_acquire) - target_) >= 0;
}

// A share's word of an earlier operator stands for the whole share. One of a later operator: this one is done, and this
// thread is late.
bool TeamMember::take(int share, Piece& piece) {
  std::atomic<uint64_t>& next = team_.shares_[share].next;
  uint64_t seen = next.load(std::memory_order_relaxed);
  const uint64_t pieces = static_cast<uint64_t>(work_.pieces_of(work_.context, share));
  for (;;) {
    const uint64_t call = seen >> kPieceBits;
    if (call > call_) return false;
    const uint64_t index = call == call_ ? seen & kPieceMask : 0;
    if (index >= pieces) return false;
    const uint64_t taken = uint64_t{call_} << kPieceBits | (index + 1);
    if (next.compare_exchange_weak(seen, taken, std::memory_order_relaxed)) {
      piece = {share, static_cast<int64_t>(index)};
      return true;
    }
  }
}

bool TeamMember::is_untouched(int share) const {
  return team_.shares_[share].next.load(std::memory_order_relaxed) >> kPieceBits < call_;
}

// Called between two pieces. Small ones are not worth a look at the clock each.
void TeamMember::yield_if_due() {
  if (--pieces_to_look_ > 0) return;
  const Clock::time_point now = Clock::now();
  const Clock::duration passed = now - looked_;
  looked_ = now;
  pieces_to_look_ = passed < kLook ? 8 : 1;
  if (passed > kPreempted) {
    slice_start_ = now;
  } else if (now - slice_start_ > kTimeSlice) {
    report();
    std::this_thread::yield();
    slice_start_ = looked_ = Clock::now();
  }
}

// Adds the pieces that this thread has finished to the team's count. The order of this and of sleepers_ decides who
// sees whom: a sleeper adds itself, then looks at the count.
void TeamMember::report() {
  if (finished_ == 0) return;
  const uint32_t done = team_.done_.fetch_add(finished_) + finished_;
  finished_ = 0;
  if (done == target_ && team_.sleepers_.load() > 0) wake_all(team_.done_);
}

bool TeamMember::next(Piece& piece) {
  if (holds_piece_) {
    holds_piece_ = false;
    ++finished_;
    yield_if_due();
  }
  if (worker_ < work_.shares && take(worker_, piece)) return holds_piece_ = true;
  report();  // not after each piece: all threads write to one counter
  for (int i = 1; i < threads_; ++i) {
    const int share = (worker_ + i) % threads_;
    if (share >= work_.shares) continue;
    if (is_untouched(share) && missed_call_ + 1 < call_) {
      const Clock::time_point end = Clock::now() + kGrace;
      while (is_untouched(share) && !is_done() && Clock::now() < end) relax();
    }
    if (is_untouched(share)) missed_call_ = call_;
    if (take(share, piece)) return holds_piece_ = true;
  }
  return false;
}

void TeamMember::wait() {
  if (is_done()) return;
  const Clock::time_point end = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      relax();
      if (is_done()) return;
    }
  } while (Clock::now() < end);
  team_.sleepers_.fetch_add(1);
  for (uint32_t seen = team_.done_.load(); !is_done(); seen = team_.done_.load()) sleep_on(team_.done_, seen);
  team_.sleepers_.fetch_sub(1);
}

// What the threads of a pool have in common. A fork copies none of them: the child starts others.
struct ThreadPool::Shared {
  const pid_t process = getpid();
  std::mutex mutex;
  std::condition_variable changed;
  std::atomic<uint64_t> count{0};    // of works brought; changes under the mutex
  std::shared_ptr<const Work> work;  // the last one
  int threads = 1;                   // that it is for
  bool ends = false;
  std::vector<std::thread> workers;

  void run_worker(int worker) {
    uint64_t done = 0;
    for (;;) {
      const Clock::time_point end = Clock::now() + kSpin;
      while (count.load(std::memory_order_acquire) == done && Clock::now() < end) relax();
      std::shared_ptr<const Work> mine;
      {
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [&] { return ends || count.load() != done; });
        if (ends) return;
        done = count.load();
        if (worker < threads) mine = work;
      }
      if (mine != nullptr) (*mine)(worker);
    }
  }
};

void ThreadPool::run(int threads, const std::shared_ptr<const Work>& work) {
  if (threads > 1) {
    if (shared_ != nullptr && shared_->process != getpid())
      (void)shared_.release();  // its threads are the parent's, none to be joined here
    if (shared_ == nullptr) shared_ = std::make_unique<Shared>();
    Shared& shared = *shared_;
    while (static_cast<int>(shared.workers.size()) < threads - 1) {
      const int worker = static_cast<int>(shared.workers.size()) + 1;
      try {
        shared.workers.emplace_back([&shared, worker] { shared.run_worker(worker); });
      } catch (const std::system_error&) {  // no more threads for this process: the others do their work too
        break;
      }
    }
    {
      const std::lock_guard<std::mutex> lock(shared.mutex);
      shared.work = work;
      shared.threads = threads;
      shared.count.fetch_add(1, std::memory_order_release);
    }
    shared.changed.notify_all();
  }
  (*work)(0);
}

ThreadPool::ThreadPool() = default;

ThreadPool::~ThreadPool() {
  if (shared_ == nullptr) return;
  if (shared_->process != getpid()) {
    (void)shared_.release();
    return;
  }
  {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    shared_->ends = true;
  }
  shared_->changed.notify_all();
  for (std::thread& worker : shared_->workers) worker.join();
}

}  // namespace vimtrt
