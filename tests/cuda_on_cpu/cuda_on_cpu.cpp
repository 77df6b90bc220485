#include "tests/cuda_on_cpu/cuda_on_cpu.h"

#include <dlfcn.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cfenv>
#include <cstdio>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "tests/cuda_on_cpu/control.h"
#include "tests/cuda_on_cpu/fiber.h"
#include "tests/cuda_on_cpu/memory.h"
#include "tests/cuda_on_cpu/scheduler.h"
#include "tests/cuda_on_cpu/watch.h"

#if defined(__x86_64__)
#include <ucontext.h>
#endif

namespace vimtrt {
namespace cuda_on_cpu {

Now now;

namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxGridX = 0x7fffffff;
constexpr unsigned kMaxGridYZ = 65535;
constexpr size_t kMaxSharedBytes =
    99 * 1024;  // the smallest limit of the architectures that are compiled for: 8.6, 8.9 and 12.0

constexpr unsigned kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

struct Copy {
  unsigned char* shared;
  const unsigned char* global;
  int size, bytes;
  int group;
  bool is_done;
  int line;
};

struct Thread {
  Fiber fiber;
  bool has_started = false, has_ended = false, is_at_barrier = false;
  std::vector<Copy> copies;  // not waited for
  int groups = 0;            // committed so far
};

// The lanes that have come to a collective, each with what it brought, until all 32 have.
struct Warp {
  uint32_t arrived = 0;
  const char* name = nullptr;
  int line = 0;
  void* lanes[kLanes];
};

// A set of threads of a block, with the choices of the schedules.
class ThreadSet {
 public:
  void assign(unsigned threads) {
    words_ = (threads + 63) / 64;
    for (unsigned i = 0; i < words_; ++i) bits_[i] = ~uint64_t{0};
    if (threads % 64 != 0) bits_[words_ - 1] >>= 64 - threads % 64;
  }
  void remove(unsigned thread) { bits_[thread / 64] &= ~(uint64_t{1} << thread % 64); }
  void add_warp(unsigned warp) { bits_[warp / 2] |= uint64_t{kAllLanes} << (warp % 2 * 32); }

  int lowest() const {
    for (unsigned i = 0; i < words_; ++i) {
      if (bits_[i] != 0) return static_cast<int>(i * 64) + __builtin_ctzll(bits_[i]);
    }
    return -1;
  }
  int highest() const {
    for (unsigned i = words_; i-- > 0;) {
      if (bits_[i] != 0) return static_cast<int>(i * 64) + 63 - __builtin_clzll(bits_[i]);
    }
    return -1;
  }
  // The first at or after `start`, cyclically.
  int next(unsigned start) const {
    const unsigned word = start / 64 % words_;
    const uint64_t above = bits_[word] & (~uint64_t{0} << start % 64);
    if (above != 0) return static_cast<int>(word * 64) + __builtin_ctzll(above);
    for (unsigned i = 1; i <= words_; ++i) {
      const unsigned at = (word + i) % words_;
      if (bits_[at] != 0) return static_cast<int>(at * 64) + __builtin_ctzll(bits_[at]);
    }
    return -1;
  }

 private:
  unsigned words_ = 0;
  uint64_t bits_[kMaxThreads / 64];
};

// The launch that runs. One at a time: that is the promise of control.h.
struct Run {
  cuda::Grid grid;
  Body body = nullptr;
  const void* closure = nullptr;
  uint64_t random = 0;

  std::unique_ptr<Guarded> shared;
  std::vector<Thread> threads = std::vector<Thread>(kMaxThreads);
  std::vector<Stack> stacks, free_stacks;
  Fiber host;
  bool is_in_kernel = false;

  ThreadSet runnable;
  Warp warps[kMaxThreads / kLanes];
  unsigned ended = 0, at_barrier = 0;
  int barrier_line = 0;

  int status = 0;
  std::string error;
};

Run run;

uint64_t next_random() {  // xorshift64*
  run.random ^= run.random >> 12;
  run.random ^= run.random << 25;
  run.random ^= run.random >> 27;
  return run.random * 0x2545f4914f6cdd1dull >> 32;
}

// Errors

std::string number(int64_t value) { return std::to_string(value); }

std::string at_line(int line) { return " (line " + number(line) + ")"; }

std::string where() {
  return std::string(run.grid.function) + " (" + run.grid.file + ":" + number(run.grid.line) + "), block (" +
         number(now.block_x) + ", " + number(now.block_y) + ", " + number(now.block_z) + ")";
}

int refuse(int status, const std::string& text) {
  run.error = text;
  return run.status = status;
}

[[noreturn]] void leave_kernel() {
  run.is_in_kernel = false;
  leave_fiber(run.host);
}

}  // namespace

bool is_in_kernel() { return run.is_in_kernel; }
const Stack& stack_of_thread() { return run.threads[now.thread].fiber.stack; }
const Guarded* shared_memory() { return run.shared.get(); }

void fail(int status, const std::string& text) {
  refuse(status, where() + ", thread " + number(now.thread) + ": " + text);
  leave_kernel();
}

std::string place_of(const void* instruction) {
  Dl_info library;
  if (instruction == nullptr || dladdr(instruction, &library) == 0) return {};
  char offset[32];
  snprintf(offset, sizeof offset, "0x%zx",
           reinterpret_cast<uintptr_t>(instruction) - reinterpret_cast<uintptr_t>(library.dli_fbase));
  return std::string(" (addr2line -fiCe ") + library.dli_fname + " " + offset + ")";
}

namespace {

std::string describe_address(const void* address) {
  if (const Guarded* memory = owner_of(address)) return memory->describe(address);
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  for (const Stack& stack : run.stacks) {
    const auto* p = static_cast<const unsigned char*>(address);
    if (p < stack.bottom && p >= stack.bottom - page)
      return "below the stack of the thread: too many or too large local variables";
  }
  return "an address that is no device memory";
}

// Faults. A signal handler leaves the thread's stack for good, like any other error; what the double itself does wrong
// is not caught.

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE};
struct sigaction previous_actions[std::size(kSignals)];
stack_t previous_signal_stack;

void restore_signals() {
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &previous_actions[i], nullptr);
  sigaltstack(&previous_signal_stack, nullptr);
}

#if defined(__x86_64__)
std::string what_the_instruction_did(const void* context) {
  constexpr greg_t kWrite = 2;
  return (static_cast<const ucontext_t*>(context)->uc_mcontext.gregs[REG_ERR] & kWrite) != 0 ? "wrote " : "read ";
}

std::string place_of_the_instruction(const void* context) {
  return place_of(reinterpret_cast<void*>(static_cast<const ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]));
}
#else
std::string what_the_instruction_did(const void*) { return "read or wrote "; }
std::string place_of_the_instruction(const void*) { return {}; }
#endif

void on_fault(int signal, siginfo_t* info, void* context) {
  if (!run.is_in_kernel) {
    restore_signals();  // the instruction faults again, and whoever was responsible before hears of it
    return;
  }
  const std::string place = place_of_the_instruction(context);
  if (signal == SIGFPE) fail(kLaunchFailure, "divided an integer by zero" + place);
  fail(kIllegalAddress, what_the_instruction_did(context) + describe_address(info->si_addr) + place);
}

void catch_signals() {
  static std::vector<unsigned char> memory(256 * 1024);
  stack_t stack = {};
  stack.ss_sp = memory.data();
  stack.ss_size = memory.size();
  sigaltstack(&stack, &previous_signal_stack);
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // not masked, since the handler does not return
  for (size_t i = 0; i < std::size(kSignals); ++i) sigaction(kSignals[i], &action, &previous_actions[i]);
}

// The schedule

int pick() {
  switch (settings().schedule) {
    case Schedule::kAscending:
      return run.runnable.lowest();
    case Schedule::kDescending:
      return run.runnable.highest();
    case Schedule::kRandom:
      break;
  }
  return run.runnable.next(static_cast<unsigned>(next_random() % now.threads));
}

// Threads of the block of which `is` holds, as "3, 5 and 12 more".
template <class Predicate>
std::string list_threads(const Predicate& is) {
  constexpr int kShown = 4;
  std::string text;
  int count = 0;
  for (unsigned i = 0; i < now.threads; ++i) {
    if (is(i) && ++count <= kShown) text += (count > 1 ? ", " : "") + number(i);
  }
  if (count > kShown) text += " and " + number(count - kShown) + " more";
  return (count == 1 ? "thread " : "threads ") + text;
}

// No thread can go on and some have not ended.
[[noreturn]] void report_deadlock() {
  const auto has_ended = [](unsigned i) { return run.threads[i].has_ended; };
  const auto is_at_barrier = [](unsigned i) { return run.threads[i].is_at_barrier; };
  const std::string barrier =
      run.at_barrier > 0 ? list_threads(is_at_barrier) + " wait at sync_block" + at_line(run.barrier_line) : "";
  for (unsigned w = 0; w * kLanes < now.threads; ++w) {
    const Warp& warp = run.warps[w];
    if (warp.arrived == 0) continue;
    const auto waits = [&](unsigned i) { return i / kLanes == w && (warp.arrived >> i % kLanes & 1) != 0; };
    const auto is_absent = [&](unsigned i) { return i / kLanes == w && !waits(i); };
    fail(kLaunchFailure, "not all lanes of a warp come to " + std::string(warp.name) + at_line(warp.line) + ": " +
                             list_threads(waits) + " wait, " + list_threads(is_absent) + " ended or wait elsewhere" +
                             (barrier.empty() ? "" : "; ") + barrier);
  }
  fail(kLaunchFailure, barrier + ", " + list_threads(has_ended) + " ended without it");
}

void end_thread() {
  Thread& self = run.threads[now.thread];
  for (const Copy& copy : self.copies)
    fail(kLaunchFailure, "ended without waiting for copy_async" + at_line(copy.line));
  self.has_ended = true;
  ++run.ended;
  run.runnable.remove(now.thread);
}

// What a stack runs: a thread, and when that has ended, as long as the schedule comes to threads that have not started,
// those.
void run_threads() {
  const Stack stack = run.threads[now.thread].fiber.stack;
  arrived(run.threads[now.thread].fiber);
  for (;;) {
    run.body(run.closure);
    end_thread();
    const int chosen = pick();
    if (chosen < 0 && run.ended < now.threads) report_deadlock();
    if (chosen < 0) break;
    now.thread = static_cast<unsigned>(chosen);
    Thread& next = run.threads[now.thread];
    if (next.has_started) {
      run.free_stacks.push_back(stack);
      leave_fiber(next.fiber);
    }
    next.has_started = true;
    next.fiber.stack = stack;
  }
  run.free_stacks.push_back(stack);
  leave_kernel();
}

void begin_fiber(Thread& thread) {
  if (run.free_stacks.empty()) {
    run.stacks.push_back(new_stack());
    run.free_stacks.push_back(run.stacks.back());
  }
  prepare_fiber(thread.fiber, run.free_stacks.back(), run_threads, static_cast<unsigned>(run.free_stacks.size()));
  run.free_stacks.pop_back();
  thread.has_started = true;
}

// Lets the schedule choose who goes on. Returns when that is this thread.
void give_way() {
  const int chosen = pick();
  if (chosen < 0) report_deadlock();
  if (static_cast<unsigned>(chosen) == now.thread) return;
  Thread& self = run.threads[now.thread];
  now.thread = static_cast<unsigned>(chosen);
  Thread& next = run.threads[now.thread];
  if (!next.has_started) begin_fiber(next);
  switch_fiber(self.fiber, next.fiber);
}

// A warp-wide call: `perform` gets what the 32 lanes brought, on their stacks, when the last has come.
void meet(const char* name, int line, void* brought, void (*perform)(void* const* lanes)) {
  const unsigned lane = now.thread % kLanes;
  Warp& warp = run.warps[now.thread / kLanes];
  if (now.threads - now.thread / kLanes * kLanes < kLanes)
    fail(kLaunchFailure, std::string(name) + at_line(line) + " in a warp of less than 32 threads");
  if (warp.arrived == 0) {
    warp.name = name;
    warp.line = line;
  } else if (warp.line != line || std::strcmp(warp.name, name) != 0) {
    fail(kLaunchFailure, "is at " + std::string(name) + at_line(line) + ", other lanes of its warp at " + warp.name +
                             at_line(warp.line));
  }
  warp.lanes[lane] = brought;
  warp.arrived |= uint32_t{1} << lane;
  if (warp.arrived == kAllLanes) {
    warp.arrived = 0;
    perform(warp.lanes);
    run.runnable.add_warp(now.thread / kLanes);
  } else {
    run.runnable.remove(now.thread);
  }
  give_way();
}

struct Exchange {
  uint64_t bits, result;
  int source;
};

void perform_exchange(void* const* lanes) {
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    auto* mine = static_cast<Exchange*>(lanes[lane]);
    mine->result = static_cast<const Exchange*>(lanes[mine->source])->bits;
  }
}

struct Product {
  int32_t* d;
  const uint32_t *a, *b;
};

void perform_product(void* const* lanes) {
  alignas(16) int8_t a[16][32], b[8][32];  // rows of a, columns of b
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const auto* mine = static_cast<const Product*>(lanes[lane]);
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned i = 0; i < 4; ++i) std::memcpy(&a[g + i % 2 * 8][i / 2 * 16 + 4 * t], &mine->a[i], 4);
    for (unsigned i = 0; i < 2; ++i) std::memcpy(&b[g][i * 16 + 4 * t], &mine->b[i], 4);
  }
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    int32_t* d = static_cast<const Product*>(lanes[lane])->d;
    for (unsigned i = 0; i < 4; ++i) {
      const int8_t* row = a[lane / 4 + i / 2 * 8];
      const int8_t* column = b[lane % 4 * 2 + i % 2];
      int32_t sum = 0;
      for (int k = 0; k < 32; ++k) sum += row[k] * column[k];
      d[i] = static_cast<int32_t>(static_cast<uint32_t>(d[i]) + static_cast<uint32_t>(sum));
    }
  }
}

struct Rows {
  uint32_t* r;
  const unsigned char* row;
  const unsigned char* read[4];  // what r was read from
};

void perform_load_matrices(void* const* lanes) {
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    for (unsigned m = 0; m < 4; ++m) {
      auto* mine = static_cast<Rows*>(lanes[lane]);
      mine->read[m] = static_cast<const Rows*>(lanes[8 * m + lane / 4])->row + 4 * (lane % 4);
      std::memcpy(&mine->r[m], mine->read[m], 4);
    }
  }
}

void perform_sync(void* const*) { ++now_is.syncs[now.thread / kLanes]; }

void perform_copy(const Copy& copy) {
  std::memcpy(copy.shared, copy.global, static_cast<size_t>(copy.bytes));
  std::memset(copy.shared + copy.bytes, 0, static_cast<size_t>(copy.size - copy.bytes));
}

bool is_aligned(const void* address, size_t alignment) { return reinterpret_cast<uintptr_t>(address) % alignment == 0; }

// Blocks

void run_block(uint64_t block) {
  now.block_x = static_cast<unsigned>(block % run.grid.x);
  now.block_y = static_cast<unsigned>(block / run.grid.x % run.grid.y);
  now.block_z = static_cast<unsigned>(block / run.grid.x / run.grid.y);
  run.shared->fill(settings().poison);
  for (unsigned i = 0; i < now.threads; ++i) {
    Thread& thread = run.threads[i];
    thread.has_started = thread.has_ended = thread.is_at_barrier = false;
    thread.copies.clear();
    thread.groups = 0;
  }
  for (unsigned w = 0; w * kLanes < now.threads; ++w) run.warps[w].arrived = 0;
  run.ended = run.at_barrier = 0;
  run.runnable.assign(now.threads);
  now_is.block_began = ++now_is.phase;

  now.thread = static_cast<unsigned>(pick());
  Thread& first = run.threads[now.thread];
  begin_fiber(first);
  run.host.stack = {};  // the caller's, of which only AddressSanitizer knows
  run.is_in_kernel = true;
  switch_fiber(run.host, first.fiber);
  if (run.status != 0) return;
  if (const std::string damage = run.shared->damage(); !damage.empty())
    refuse(kIllegalAddress, where() + ": " + damage);
}

// Every block once: upwards, downwards, or from a random one on in random steps.
void run_blocks() {
  const uint64_t count = uint64_t{run.grid.x} * run.grid.y * run.grid.z;
  uint64_t block = 0, step = 1;
  if (settings().schedule == Schedule::kDescending) {
    block = count - 1;
    step = count - 1;
  } else if (settings().schedule == Schedule::kRandom) {
    block = next_random() % count;
    do step = next_random() % count;
    while (std::gcd(step, count) != 1);
  }
  for (uint64_t i = 0; i < count && run.status == 0; ++i) {
    run_block(block);
    block = (block + step) % count;
  }
}

int check_configuration(const cuda::Grid& grid, unsigned threads, size_t shared_bytes) {
  const std::string asked = std::string(grid.function) + " (" + grid.file + ":" + number(grid.line) + "): a grid of " +
                            number(grid.x) + " x " + number(grid.y) + " x " + number(grid.z) + " blocks of " +
                            number(threads) + " threads and " + number(static_cast<int64_t>(shared_bytes)) +
                            " shared bytes: ";
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return refuse(kInvalidConfiguration, asked + "a dimension is 0");
  if (grid.x > kMaxGridX || grid.y > kMaxGridYZ || grid.z > kMaxGridYZ)
    return refuse(kInvalidConfiguration, asked + "the grid is too large");
  if (threads == 0 || threads > kMaxThreads)
    return refuse(kInvalidConfiguration, asked + "a block has 1 to 1024 threads");
  if (shared_bytes > kMaxSharedBytes)
    return refuse(kInvalidValue, asked + "a block has at most 99 KiB of shared memory on every architecture");
  return 0;
}

}  // namespace

const std::string& last_error() { return run.error; }

int run_grid(const cuda::Grid& grid, unsigned threads, size_t shared_bytes, Body body, const void* closure) {
  run.status = 0;
  run.error.clear();
  if (check_configuration(grid, threads, shared_bytes) != 0) return run.status;
  run.grid = grid;
  run.body = body;
  run.closure = closure;
  run.random = settings().seed * 0x9e3779b97f4a7c15ull + 0x1234567;
  run.free_stacks = run.stacks;
  run.shared = std::make_unique<Guarded>(shared_bytes, 16, settings().placement, "shared memory");
  now.threads = threads;
  now.grid_x = grid.x;
  now.shared = run.shared->data();
  now_is.launch_began = ++now_is.phase;

  std::fenv_t caller;
  std::fegetenv(&caller);
  std::fesetenv(FE_DFL_ENV);  // whatever mode the caller is in: a GPU does not know it
  catch_signals();
  run_blocks();
  restore_signals();
  std::fesetenv(&caller);
  run.shared.reset();
  if (run.status != 0) return run.status;
  if (const std::string damage = device_damage(); !damage.empty()) {
    return refuse(kIllegalAddress,
                  std::string(grid.function) + " (" + grid.file + ":" + number(grid.line) + "): " + damage);
  }
  return 0;
}

void wait_block(int line) {
  if (run.at_barrier > 0 && run.barrier_line != line) {
    fail(kLaunchFailure,
         "is at sync_block" + at_line(line) + ", other threads of its block at sync_block" + at_line(run.barrier_line));
  }
  run.barrier_line = line;
  run.threads[now.thread].is_at_barrier = true;
  if (++run.at_barrier == now.threads) {
    run.at_barrier = 0;
    ++now_is.phase;
    for (unsigned i = 0; i < now.threads; ++i) run.threads[i].is_at_barrier = false;
    run.runnable.assign(now.threads);
  } else {
    run.runnable.remove(now.thread);
  }
  give_way();
}

void wait_warp(int line) { meet("sync_warp", line, nullptr, perform_sync); }

uint64_t exchange(uint64_t bits, int source_lane, const char* name, int line) {
  if (source_lane < 0 || source_lane >= static_cast<int>(kLanes))
    fail(kLaunchFailure, std::string(name) + at_line(line) + " from lane " + number(source_lane));
  Exchange mine = {bits, 0, source_lane};
  meet(name, line, &mine, perform_exchange);
  return mine.result;
}

void multiply(int32_t* d, const uint32_t* a, const uint32_t* b, int line) {
  Product mine = {d, a, b};
  meet("mma_s8_m16n8k32", line, &mine, perform_product);
}

void load_matrices(uint32_t* r, const void* shared_row, int line) {
  constexpr size_t kRowBytes = 16;
  const auto call = [&] { return "ldmatrix_x4" + at_line(line) + " of 16 bytes from " + describe_address(shared_row); };
  if (!run.shared->holds(shared_row, kRowBytes)) fail(kIllegalAddress, call());
  if (!is_aligned(shared_row, kRowBytes)) fail(kMisalignedAddress, "misaligned " + call());
  Rows mine = {r, static_cast<const unsigned char*>(shared_row), {}};
  meet("ldmatrix_x4", line, &mine, perform_load_matrices);
  for (const unsigned char* read : mine.read) watch_read(read, 4, nullptr, 1);
}

void start_copy(int size, void* shared, const void* global, int bytes, int line) {
  const auto refuse_copy = [&](int status, const std::string& text) {
    fail(status, "copy_async" + at_line(line) + " " + text);
  };
  if (bytes < 0 || bytes > size) refuse_copy(kLaunchFailure, "of " + number(bytes) + " of " + number(size) + " bytes");
  if (!is_aligned(shared, static_cast<size_t>(size)))
    refuse_copy(kMisalignedAddress, "misaligned to " + describe_address(shared));
  if (!is_aligned(global, static_cast<size_t>(size)))
    refuse_copy(kMisalignedAddress, "misaligned from " + describe_address(global));
  if (!run.shared->holds(shared, static_cast<size_t>(size))) {
    refuse_copy(kIllegalAddress, "of " + number(size) + " bytes to " + describe_address(shared));
  }
  const Guarded* source = owner_of(global);
  if (bytes > 0 &&
      (source == nullptr || source == run.shared.get() || !source->holds(global, static_cast<size_t>(bytes)))) {
    refuse_copy(kIllegalAddress, "of " + number(bytes) + " bytes from " + describe_address(global));
  }
  watch_copy_start(shared, static_cast<size_t>(size));
  if (bytes > 0) watch_read(global, static_cast<size_t>(bytes), nullptr, 1);
  Thread& self = run.threads[now.thread];
  const Copies copies = settings().copies;
  const bool at_once = copies == Copies::kEarly || (copies == Copies::kRandom && next_random() % 2 == 0);
  self.copies.push_back({static_cast<unsigned char*>(shared), static_cast<const unsigned char*>(global), size, bytes,
                         self.groups, at_once, line});
  if (at_once) perform_copy(self.copies.back());
}

void commit_group() { ++run.threads[now.thread].groups; }

void wait_groups(int pending) {
  Thread& self = run.threads[now.thread];
  const auto stays = [&](const Copy& copy) { return copy.group >= self.groups - pending; };
  const auto first_that_stays = std::find_if(self.copies.begin(), self.copies.end(), stays);
  for (auto copy = self.copies.begin(); copy != first_that_stays; ++copy) {
    if (!copy->is_done) perform_copy(*copy);
    watch_copy_end(copy->shared, static_cast<size_t>(copy->size));
  }
  self.copies.erase(self.copies.begin(), first_that_stays);
}

void check_load(const void* p, size_t bytes, int line) {
  const auto call = [&] {
    return "load" + at_line(line) + " of " + number(static_cast<int64_t>(bytes)) + " bytes from " + describe_address(p);
  };
  const Guarded* memory = owner_of(p);
  if (memory == nullptr || memory == run.shared.get() || !memory->holds(p, bytes)) fail(kIllegalAddress, call());
  if (!is_aligned(p, bytes)) fail(kMisalignedAddress, "misaligned " + call());
  if (settings().roles && !memory->is_protected()) fail(kLaunchFailure, call() + ", which the kernel may write");
}

}  // namespace cuda_on_cpu
}  // namespace vimtrt
