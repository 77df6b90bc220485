// What tests of the double choose, and device memory. For one thread of the process at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace vimtrt {
namespace cuda_on_cpu {

enum class Schedule {
  kAscending,
  kDescending,
  kRandom
};  // which runnable thread of a block goes on, and the order of blocks
enum class Placement { kLeft, kRight };        // which end of an allocation lies at a guard page
enum class Copies { kLate, kEarly, kRandom };  // asynchronous copies happen at the wait, at once, or now this, now that

struct Settings {
  Schedule schedule = Schedule::kAscending;
  uint64_t seed = 0;
  uint8_t poison =
      0xff;  // in shared memory before every block, and in device memory that was allocated and not written
  Placement placement = Placement::kRight;
  Copies copies = Copies::kLate;
  bool watch = true;  // look at every access to shared and device memory (watch.h)
  bool roles = true;  // an allocation is read by cuda::load or written; false: one holds many values, as an engine's do
};

void configure(const Settings& settings);
const Settings& settings();

// What the last launch found wrong; empty when nothing.
const std::string& last_error();

// Device memory between guard pages, poisoned, its start aligned to `alignment` (a power of two up to 4096). `name` is
// used in errors.
void* device_allocate(size_t bytes, size_t alignment = 16, const char* name = "device memory");
void device_free(void* memory);

// From here on a write to it is an error, or allowed again. Only protected memory may be read with cuda::load: it is
// the memory that no thread writes.
void device_protect(void* memory, bool is_protected = true);

}  // namespace cuda_on_cpu
}  // namespace vimtrt
