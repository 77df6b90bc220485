#include "tests/cuda_on_cpu/watch.h"

#include <string>

#include "tests/cuda_on_cpu/control.h"
#include "tests/cuda_on_cpu/cuda_on_cpu.h"
#include "tests/cuda_on_cpu/memory.h"
#include "tests/cuda_on_cpu/scheduler.h"

namespace vimtrt {
namespace cuda_on_cpu {

Clock now_is;

namespace {

constexpr unsigned kLanes = 32;
constexpr char kUnordered[] = " without a barrier in between";

unsigned warp() { return now.thread / kLanes; }
uint32_t lane_bit() { return uint32_t{1} << now.thread % kLanes; }

// Phases before it do not count: for shared memory those of earlier blocks, for device memory those of earlier
// launches.
uint32_t horizon(const Guarded& memory) {
  return &memory == shared_memory() ? now_is.block_began : now_is.launch_began;
}

bool is_ordered_after_write(const Trace& trace, uint32_t since) {
  if (trace.write_phase < since) return true;
  if (trace.write_phase < now_is.block_began) return false;  // another block
  if (trace.writer == now.thread || trace.write_phase < now_is.phase) return true;
  return trace.writer / kLanes == warp() && trace.write_syncs < now_is.syncs[warp()];
}

bool is_ordered_after_reads(const Trace& trace, uint32_t since) {
  if (trace.first_read_phase >= since && trace.first_read_phase < now_is.block_began) return false;  // another block
  if (trace.read_phase != now_is.phase) return true;
  if (trace.is_read_by_many_warps || trace.read_warp != warp()) return false;
  return trace.read_syncs < now_is.syncs[warp()] || (trace.read_lanes & ~lane_bit()) == 0;
}

void record_read(Trace& trace, uint32_t since) {
  if (trace.first_read_phase < since) trace.first_read_phase = now_is.phase;
  if (trace.read_phase == now_is.phase && trace.read_warp != warp()) {
    trace.is_read_by_many_warps = true;
  } else if (trace.read_phase == now_is.phase && trace.read_syncs == now_is.syncs[warp()]) {
    trace.read_lanes |= lane_bit();
  } else {
    if (trace.read_phase != now_is.phase) trace.is_read_by_many_warps = false;
    trace.read_phase = now_is.phase;
    trace.read_syncs = now_is.syncs[warp()];
    trace.read_lanes = lane_bit();
    trace.read_warp = static_cast<uint16_t>(warp());
  }
}

void record_write(Trace& trace) {
  trace.write_phase = now_is.phase;
  trace.write_syncs = now_is.syncs[warp()];
  trace.writer = static_cast<uint16_t>(now.thread);
  trace.is_in_flight = false;
}

std::string writer_of(const Trace& trace) {
  return trace.write_phase < now_is.block_began ? "another block" : "thread " + std::to_string(trace.writer);
}

std::string reader_of(const Trace& trace) {
  if (trace.read_phase != now_is.phase) return "another block";
  if (trace.is_read_by_many_warps) return "threads of several warps";
  const uint32_t others = trace.read_warp == warp() ? trace.read_lanes & ~lane_bit() : trace.read_lanes;
  return "thread " + std::to_string(trace.read_warp * kLanes + static_cast<unsigned>(__builtin_ctz(others)));
}

void watch(const void* address, size_t bytes, bool is_write, const void* instruction, size_t alignment) {
  Guarded* memory = owner_of(address);
  if (memory == nullptr) return;  // nothing of the kernel's: constants, the double's own
  const auto* first = static_cast<const unsigned char*>(address);
  const char* verb = is_write ? "wrote " : "read ";
  if (!memory->holds(address, bytes) || (is_write && memory->is_protected())) {
    while (memory->holds(first, 1) && !(is_write && memory->is_protected())) ++first;
    fail(kIllegalAddress, std::string(verb) + memory->describe(first) + place_of(instruction));
  }
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0) {
    fail(kMisalignedAddress, std::string(verb) + std::to_string(bytes) + " misaligned bytes at " +
                                 memory->describe(first) + place_of(instruction));
  }
  if (memory->is_protected()) return;  // only read
  const uint32_t since = horizon(*memory);
  Trace* trace = memory->traces() + (first - memory->data());
  for (size_t i = 0; i < bytes; ++i, ++trace) {
    const auto what = [&] { return std::string(verb) + memory->describe(first + i) + ", "; };
    if (trace->is_in_flight && trace->write_phase >= now_is.block_began) {
      fail(kLaunchFailure, what() + "to which thread " + std::to_string(trace->writer) + " has a copy under way" +
                               place_of(instruction));
    }
    if (!is_ordered_after_write(*trace, since)) {
      fail(kLaunchFailure, what() + "which " + writer_of(*trace) + " wrote" + kUnordered + place_of(instruction));
    }
    if (!is_write) {
      record_read(*trace, since);
      continue;
    }
    if (!is_ordered_after_reads(*trace, since)) {
      fail(kLaunchFailure, what() + "which " + reader_of(*trace) + " read" + kUnordered + place_of(instruction));
    }
    record_write(*trace);
  }
}

bool is_of_interest(const void* address) {
  if (!is_in_kernel() || !settings().watch) return false;
  const Stack& stack = stack_of_thread();
  return static_cast<size_t>(static_cast<const unsigned char*>(address) - stack.bottom) >= stack.bytes;
}

}  // namespace

void watch_read(const void* address, size_t bytes, const void* instruction, size_t alignment) {
  if (is_of_interest(address)) watch(address, bytes, false, instruction, alignment);
}

void watch_write(const void* address, size_t bytes, const void* instruction, size_t alignment) {
  if (is_of_interest(address)) watch(address, bytes, true, instruction, alignment);
}

void watch_copy_start(void* shared, size_t bytes) {
  if (!settings().watch) return;
  watch(shared, bytes, true, nullptr, 1);
  Guarded* memory = owner_of(shared);
  Trace* trace = memory->traces() + (static_cast<unsigned char*>(shared) - memory->data());
  for (size_t i = 0; i < bytes; ++i) trace[i].is_in_flight = true;
}

void watch_copy_end(void* shared, size_t bytes) {
  if (!settings().watch) return;
  Guarded* memory = owner_of(shared);
  Trace* trace = memory->traces() + (static_cast<unsigned char*>(shared) - memory->data());
  for (size_t i = 0; i < bytes; ++i) record_write(trace[i]);
}

}  // namespace cuda_on_cpu
}  // namespace vimtrt

// What -fsanitize=thread calls. Hidden, so that a sanitizer's library elsewhere in the process is not taken for them,
// nor they for it.
#define VIMTRT_HOOK extern "C" __attribute__((visibility("hidden"))) void
#define VIMTRT_CALLER (static_cast<const char*>(__builtin_return_address(0)) - 1)  // inside of the call, not behind it
#define VIMTRT_READ(name, bytes, alignment) \
  VIMTRT_HOOK name(void* p) { vimtrt::cuda_on_cpu::watch_read(p, bytes, VIMTRT_CALLER, alignment); }
#define VIMTRT_WRITE(name, bytes, alignment) \
  VIMTRT_HOOK name(void* p) { vimtrt::cuda_on_cpu::watch_write(p, bytes, VIMTRT_CALLER, alignment); }
#define VIMTRT_ACCESSES(bytes)                             \
  VIMTRT_READ(__tsan_read##bytes, bytes, bytes)            \
  VIMTRT_READ(__tsan_volatile_read##bytes, bytes, bytes)   \
  VIMTRT_READ(__tsan_unaligned_read##bytes, bytes, 1)      \
  VIMTRT_WRITE(__tsan_write##bytes, bytes, bytes)          \
  VIMTRT_WRITE(__tsan_volatile_write##bytes, bytes, bytes) \
  VIMTRT_WRITE(__tsan_unaligned_write##bytes, bytes, 1)

VIMTRT_ACCESSES(1)
VIMTRT_ACCESSES(2)
VIMTRT_ACCESSES(4)
VIMTRT_ACCESSES(8)
VIMTRT_ACCESSES(16)
VIMTRT_HOOK __tsan_read_range(void* p, size_t bytes) { vimtrt::cuda_on_cpu::watch_read(p, bytes, VIMTRT_CALLER, 1); }
VIMTRT_HOOK __tsan_write_range(void* p, size_t bytes) { vimtrt::cuda_on_cpu::watch_write(p, bytes, VIMTRT_CALLER, 1); }
VIMTRT_HOOK __tsan_vptr_update(void**, void*) {}
VIMTRT_HOOK __tsan_vptr_read(void**) {}
VIMTRT_HOOK __tsan_func_entry(void*) {}
VIMTRT_HOOK __tsan_func_exit() {}
VIMTRT_HOOK __tsan_init() {}
