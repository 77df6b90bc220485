// Looks at every access of a kernel to shared and device memory: is it inside, to the byte; is it ordered after what
// other threads did with the same bytes. Kernels are compiled with -fsanitize=thread, which calls __tsan_read4 and its
// like before each access; those functions are defined in watch.cpp, and the sanitizer's own library is not there.
//
// Two accesses to a byte of which one writes, by different threads of a block, are ordered when a sync_block lies
// between them, or, within a warp, a sync_warp. Nothing else orders memory: not a shuffle, not mma, not ldmatrix.
// Threads of different blocks are never ordered. An asynchronous copy writes from its start to the wait; in between no
// one may touch its bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace vimtrt {
namespace cuda_on_cpu {

// When and by whom a byte was written and read last. Phases are counted over all barriers, blocks and launches, so that
// traces need no clearing.
struct Trace {
  uint32_t write_phase;
  uint32_t write_syncs;        // sync_warps of the writer's warp until then
  uint16_t writer;             // thread of its block
  bool is_in_flight;           // an asynchronous copy of the writer writes to it
  bool is_read_by_many_warps;  // in read_phase
  uint32_t first_read_phase;   // since the launch began
  uint32_t read_phase;
  uint32_t read_syncs;
  uint32_t read_lanes;  // of the warp, after read_syncs
  uint16_t read_warp;
};

// The present, kept by the scheduler.
struct Clock {
  uint32_t phase = 0;        // grows with every barrier, block and launch
  uint32_t block_began = 0;  // phases at which
  uint32_t launch_began = 0;
  uint32_t syncs[32] = {};  // of every warp
};
extern Clock now_is;

// Accesses on behalf of the thread that runs; they end the launch when they are wrong. `instruction` is where, or null.
void watch_read(const void* address, size_t bytes, const void* instruction, size_t alignment);
void watch_write(const void* address, size_t bytes, const void* instruction, size_t alignment);
void watch_copy_start(void* shared, size_t bytes);
void watch_copy_end(void* shared, size_t bytes);

}  // namespace cuda_on_cpu
}  // namespace vimtrt
