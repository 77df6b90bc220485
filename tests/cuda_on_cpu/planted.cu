// The kernels of planted.h. Grid of the faults: kBlocks; block: kThreads, two warps; shared: a tile of kThreads floats.
#include <cstdint>
#include <stdexcept>

#include "tests/cuda_on_cpu/planted.h"

namespace vimtrt {
namespace planted {
namespace {

constexpr int kN = static_cast<int>(kThreads);
constexpr size_t kTileBytes = kThreads * sizeof(float);

struct Arguments {
  const float* x;
  float* y;
  bool corrected;
};

VIMTRT_DEVICE int self() { return static_cast<int>(cuda::thread_x()); }
VIMTRT_DEVICE int mirror() { return kN - 1 - self(); }
VIMTRT_DEVICE const float* block_of(const float* x) { return x + cuda::block_x() * kThreads; }
VIMTRT_DEVICE float* block_of(float* y) { return y + cuda::block_x() * kThreads; }
VIMTRT_DEVICE float* tile() { return cuda::dynamic_shared<float>(); }

VIMTRT_DEVICE void fill_tile(const Arguments& a) {
  tile()[self()] = cuda::load(block_of(a.x) + self());
  cuda::sync_block();
}

// Barriers

VIMTRT_KERNEL void missing_barrier_after_write(Arguments a) {
  tile()[self()] = cuda::load(block_of(a.x) + self());
  if (a.corrected) cuda::sync_block();
  block_of(a.y)[self()] = tile()[mirror()];
}

// Only warp 0 reads what warp 1 wrote: one schedule alone shows it.
VIMTRT_KERNEL void missing_barrier_for_lower_threads(Arguments a) {
  tile()[self()] = cuda::load(block_of(a.x) + self());
  if (a.corrected) cuda::sync_block();
  block_of(a.y)[self()] = self() < kN / 2 ? tile()[mirror()] : cuda::load(block_of(a.x) + mirror());
}

VIMTRT_KERNEL void missing_barrier_for_upper_threads(Arguments a) {
  tile()[self()] = cuda::load(block_of(a.x) + self());
  if (a.corrected) cuda::sync_block();
  block_of(a.y)[self()] = self() >= kN / 2 ? tile()[mirror()] : cuda::load(block_of(a.x) + mirror());
}

VIMTRT_KERNEL void missing_barrier_before_overwrite(Arguments a) {
  fill_tile(a);
  const float value = tile()[mirror()];
  if (a.corrected) cuda::sync_block();
  tile()[self()] = value;
  cuda::sync_block();
  block_of(a.y)[self()] = tile()[self()];
}

VIMTRT_KERNEL void missing_sync_warp(Arguments a) {
  const int lane = self() % 32;
  tile()[self()] = cuda::load(block_of(a.x) + (kN - 32 - self() / 32 * 32) + lane);
  if (a.corrected) cuda::sync_warp();
  block_of(a.y)[self()] = tile()[self() - lane + 31 - lane];
}

VIMTRT_KERNEL void missed_barrier(Arguments a) {
  tile()[self()] = cuda::load(block_of(a.x) + self());
  if (!a.corrected && self() == 5) return;
  cuda::sync_block();
  block_of(a.y)[self()] = tile()[mirror()];
}

VIMTRT_KERNEL void different_barriers(Arguments a) {
  tile()[self()] = cuda::load(block_of(a.x) + self());
  if (a.corrected || self() < 40) {
    cuda::sync_block();
  } else {
    cuda::sync_block();
  }
  block_of(a.y)[self()] = tile()[mirror()];
}

// Everyone writes the same, so no value shows that no one says who comes first.
VIMTRT_KERNEL void written_by_all(Arguments a) {
  fill_tile(a);
  const float value = tile()[mirror()];
  cuda::sync_block();
  if (!a.corrected || self() == 0) tile()[0] = 1.0f;
  cuda::sync_block();
  block_of(a.y)[self()] = value * tile()[0];
}

VIMTRT_KERNEL void sync_warp_between_warps(Arguments a) {
  tile()[self()] = cuda::load(block_of(a.x) + self());
  if (a.corrected) {
    cuda::sync_block();
  } else {
    cuda::sync_warp();
  }
  block_of(a.y)[self()] = tile()[mirror()];
}

// On the double all lanes come to a shuffle before one goes on, so the values are right.
VIMTRT_KERNEL void shuffle_for_a_barrier(Arguments a) {
  const int lane = self() % 32;
  const int first = kN - 32 - self() / 32 * 32;
  tile()[self()] = cuda::load(block_of(a.x) + first + lane);
  if (a.corrected) cuda::sync_warp();
  cuda::shuffle_xor(lane, 1);
  block_of(a.y)[self()] = tile()[self() - lane + 31 - lane];
}

VIMTRT_KERNEL void ldmatrix_without_barrier(Arguments a) {
  tile()[self()] = cuda::load(block_of(a.x) + self());
  if (a.corrected) cuda::sync_block();
  uint32_t rows[4];
  cuda::ldmatrix_x4(rows, tile() + self() / 32 * 32 + self() % 32 / 8 * 4);
  cuda::sync_block();
  block_of(a.y)[self()] = tile()[mirror()] + (rows[0] == rows[1] ? 1.0f : 0.0f);
}

// Memory

VIMTRT_KERNEL void shared_read_past_the_end(Arguments a) {
  fill_tile(a);
  const float beyond = a.corrected || self() != 7 ? 0.0f : tile()[kN + 2];
  block_of(a.y)[self()] = tile()[mirror()] + 0.0f * beyond;
}

VIMTRT_KERNEL void shared_write_past_the_end(Arguments a) {
  fill_tile(a);
  block_of(a.y)[self()] = tile()[mirror()];
  if (!a.corrected && self() == kN - 1) tile()[kN] = 1.0f;
}

VIMTRT_KERNEL void shared_read_just_past_the_end(Arguments a) {
  fill_tile(a);
  if (self() == 11) tile()[kN] = 0.0f;
  const float beyond = self() == 11 ? tile()[a.corrected ? kN : kN + 1] : 0.0f;
  block_of(a.y)[self()] = beyond == 1.0f ? 1.0f : tile()[mirror()];
}

// With 4 bytes more than the tile, the 12 that follow are not behind a guard page.
VIMTRT_KERNEL void shared_write_just_past_the_end(Arguments a) {
  fill_tile(a);
  block_of(a.y)[self()] = tile()[mirror()];
  if (self() == 11) tile()[a.corrected ? kN : kN + 1] = 1.0f;
}

VIMTRT_KERNEL void shared_read_before_the_start(Arguments a) {
  fill_tile(a);
  const float before = a.corrected || self() != 7 ? 0.0f : tile()[-2];
  block_of(a.y)[self()] = tile()[mirror()] + 0.0f * before;
}

VIMTRT_KERNEL void shared_write_before_the_start(Arguments a) {
  fill_tile(a);
  block_of(a.y)[self()] = tile()[mirror()];
  if (!a.corrected && self() == 0) tile()[-1] = 1.0f;
}

VIMTRT_KERNEL void global_read_past_the_end(Arguments a) {
  const float beyond = a.corrected || self() != 7 ? 0.0f : a.x[kElements];
  block_of(a.y)[self()] = block_of(a.x)[mirror()] + 0.0f * beyond;
}

VIMTRT_KERNEL void global_read_before_the_start(Arguments a) {
  const float before = a.corrected || self() != 7 ? 0.0f : a.x[-1];
  block_of(a.y)[self()] = block_of(a.x)[mirror()] + 0.0f * before;
}

VIMTRT_KERNEL void global_write_past_the_end(Arguments a) {
  block_of(a.y)[self()] = cuda::load(block_of(a.x) + mirror());
  if (!a.corrected && self() == 3) a.y[kElements] = 1.0f;
}

VIMTRT_KERNEL void global_write_before_the_start(Arguments a) {
  block_of(a.y)[self()] = cuda::load(block_of(a.x) + mirror());
  if (!a.corrected && self() == 3) a.y[-1] = 1.0f;
}

VIMTRT_KERNEL void load_past_the_end(Arguments a) {
  const float4 beyond =
      a.corrected ? make_float4(0, 0, 0, 0) : cuda::load(reinterpret_cast<const float4*>(a.x + kElements));
  block_of(a.y)[self()] = cuda::load(block_of(a.x) + mirror()) + beyond.x;
}

VIMTRT_KERNEL void load_misaligned(Arguments a) {
  const int first = mirror() / 4 * 4;
  const float4 four = cuda::load(reinterpret_cast<const float4*>(block_of(a.x) + first + (a.corrected ? 0 : 2)));
  const float of[4] = {four.x, four.y, four.z, four.w};
  block_of(a.y)[self()] = of[mirror() % 4];
}

VIMTRT_KERNEL void misaligned_vector_read(Arguments a) {
  fill_tile(a);
  const int first = mirror() / 4 * 4;
  const float4 four = *reinterpret_cast<const float4*>(tile() + (a.corrected || first == kN - 4 ? first : first + 1));
  const float of[4] = {four.x, four.y, four.z, four.w};
  block_of(a.y)[self()] = of[mirror() % 4];
}

VIMTRT_KERNEL void misaligned_vector_write(Arguments a) {
  const float4 four = cuda::load(reinterpret_cast<const float4*>(block_of(a.x) + self() / 4 * 4));
  if (self() % 4 == 0) *reinterpret_cast<float4*>(tile() + self() + (a.corrected || self() == kN - 4 ? 0 : 2)) = four;
  cuda::sync_block();
  block_of(a.y)[self()] = tile()[mirror()];
}

VIMTRT_KERNEL void load_of_what_is_written(Arguments a) {
  block_of(a.y)[self()] = cuda::load(block_of(a.x) + mirror());
  if (!a.corrected) block_of(a.y)[self()] = cuda::load(static_cast<const float*>(block_of(a.y)) + self());
}

VIMTRT_KERNEL void write_into_an_input(Arguments a) {
  block_of(a.y)[self()] = cuda::load(block_of(a.x) + mirror());
  if (!a.corrected && self() == 9) const_cast<float*>(block_of(a.x))[9] = 0.0f;
}

VIMTRT_KERNEL void uninitialized_shared_read(Arguments a) {
  if (a.corrected || self() != 17) tile()[self()] = cuda::load(block_of(a.x) + self());
  cuda::sync_block();
  block_of(a.y)[self()] = tile()[mirror()];
}

// The second block finds what the first left, unless shared memory is poisoned in between.
VIMTRT_KERNEL void shared_memory_of_another_block(Arguments a) {
  if (a.corrected || cuda::block_x() == 0) tile()[self()] = cuda::load(a.x + self());
  cuda::sync_block();
  block_of(a.y)[self()] = cuda::load(block_of(a.x) + mirror()) + 0.0f * tile()[self()];
}

VIMTRT_KERNEL void output_not_written(Arguments a) {
  if (a.corrected || cuda::block_x() != 1 || self() != 30) block_of(a.y)[self()] = cuda::load(block_of(a.x) + mirror());
}

VIMTRT_KERNEL void blocks_depend_on_order(Arguments a) {
  block_of(a.y)[self()] = cuda::load(block_of(a.x) + mirror());
  if (!a.corrected && self() == 0) a.y[0] = cuda::load(block_of(a.x) + kN - 1);
}

VIMTRT_KERNEL void blocks_read_each_other(Arguments a) {
  block_of(a.y)[self()] = cuda::load(block_of(a.x) + mirror());
  const float other = a.corrected ? 0.0f : a.y[(cuda::block_x() + 1) % kBlocks * kThreads + self()];
  if (other == 1.0f) block_of(a.y)[self()] = other;
}

// Asynchronous copies

VIMTRT_KERNEL void copy_not_waited_for(Arguments a) {
  cuda::copy_async<4>(tile() + self(), block_of(a.x) + self(), 4);
  cuda::commit_copies();
  if (a.corrected) cuda::wait_copies<0>();
  cuda::sync_block();
  const float value = tile()[mirror()];
  cuda::wait_copies<0>();
  block_of(a.y)[self()] = value;
}

VIMTRT_KERNEL void copy_not_committed(Arguments a) {
  cuda::copy_async<4>(tile() + self(), block_of(a.x) + self(), 4);
  if (a.corrected) cuda::commit_copies();
  cuda::wait_copies<0>();
  cuda::sync_block();
  block_of(a.y)[self()] = tile()[mirror()];
  cuda::commit_copies();
  cuda::wait_copies<0>();
}

// The first half of the tile is copied in one group, the second half in another; a wait for the first alone is not
// enough.
VIMTRT_KERNEL void copy_of_a_later_group(Arguments a) {
  for (int half = 0; half < 2; ++half) {
    if (self() < kN / 2)
      cuda::copy_async<4>(tile() + half * kN / 2 + self(), block_of(a.x) + half * kN / 2 + self(), 4);
    cuda::commit_copies();
  }
  if (a.corrected) {
    cuda::wait_copies<0>();
  } else {
    cuda::wait_copies<1>();
  }
  cuda::sync_block();
  const float value = tile()[mirror()];
  cuda::wait_copies<0>();
  block_of(a.y)[self()] = value;
}

VIMTRT_KERNEL void copy_without_barrier(Arguments a) {
  cuda::copy_async<4>(tile() + self(), block_of(a.x) + self(), 4);
  cuda::commit_copies();
  cuda::wait_copies<0>();
  if (a.corrected) cuda::sync_block();
  block_of(a.y)[self()] = tile()[mirror()];
}

// A copy may arrive at any time after its start, so also before the others have read what was there.
VIMTRT_KERNEL void copy_over_what_is_read(Arguments a) {
  fill_tile(a);
  float value = 0.0f;
  if (a.corrected) {
    value = tile()[mirror()];
    cuda::sync_block();
  }
  cuda::copy_async<4>(tile() + self(), a.x + self(), 4);
  cuda::commit_copies();
  if (!a.corrected) {
    value = tile()[mirror()];
    cuda::sync_block();
  }
  cuda::wait_copies<0>();
  block_of(a.y)[self()] = value;
}

VIMTRT_KERNEL void copy_left_behind(Arguments a) {
  block_of(a.y)[self()] = cuda::load(block_of(a.x) + mirror());
  cuda::copy_async<4>(tile() + self(), block_of(a.x) + self(), 4);
  cuda::commit_copies();
  if (a.corrected) cuda::wait_copies<0>();
}

VIMTRT_KERNEL void copy_misaligned(Arguments a) {
  const int four = self() / 4 * 4 + (a.corrected ? 0 : 2);
  if (self() % 4 == 0 && self() < kN - 4) cuda::copy_async<16>(tile() + self(), block_of(a.x) + four, 16);
  if (self() >= kN - 4) cuda::copy_async<4>(tile() + self(), block_of(a.x) + self(), 4);
  cuda::commit_copies();
  cuda::wait_copies<0>();
  cuda::sync_block();
  block_of(a.y)[self()] = tile()[mirror()];
}

VIMTRT_KERNEL void copy_from_outside(Arguments a) {
  if (self() % 4 == 0)
    cuda::copy_async<16>(tile() + self(), block_of(a.x) + self() + (a.corrected || self() < kN - 4 ? 0 : kN), 16);
  cuda::commit_copies();
  cuda::wait_copies<0>();
  cuda::sync_block();
  block_of(a.y)[self()] = tile()[mirror()];
}

VIMTRT_KERNEL void copy_to_outside(Arguments a) {
  if (self() % 2 == 0) cuda::copy_async<8>(tile() + self() + (a.corrected ? 0 : 2), block_of(a.x) + self(), 8);
  cuda::commit_copies();
  cuda::wait_copies<0>();
  cuda::sync_block();
  block_of(a.y)[self()] = tile()[mirror()];
}

VIMTRT_KERNEL void copy_of_too_many_bytes(Arguments a) {
  cuda::copy_async<4>(tile() + self(), block_of(a.x) + self(), a.corrected ? 4 : 8);
  cuda::commit_copies();
  cuda::wait_copies<0>();
  cuda::sync_block();
  block_of(a.y)[self()] = tile()[mirror()];
}

// A copy of 0 bytes clears its destination and reads nothing, so its source may lie behind the end.
VIMTRT_KERNEL void copy_that_is_not_cleared(Arguments a) {
  const bool is_last = cuda::block_x() + 1 == kBlocks;
  if (a.corrected || !is_last) cuda::copy_async<4>(tile() + self(), block_of(a.x) + self() + kN, is_last ? 0 : 4);
  cuda::commit_copies();
  cuda::wait_copies<0>();
  cuda::sync_block();
  const float value = cuda::load(block_of(a.x) + mirror());
  block_of(a.y)[self()] = is_last && tile()[mirror()] != 0.0f ? 0.0f : value;
}

// Warp-wide calls

VIMTRT_KERNEL void divergent_shuffle(Arguments a) {
  const int lane = self() % 32;
  float value = cuda::load(block_of(a.x) + (kN - 32 - self() / 32 * 32) + lane);
  if (a.corrected || lane < 20) value = cuda::shuffle_xor(value, 31);
  block_of(a.y)[self()] = value;
}

VIMTRT_KERNEL void different_warp_calls(Arguments a) {
  const int lane = self() % 32;
  float value = cuda::load(block_of(a.x) + (kN - 32 - self() / 32 * 32) + lane);
  if (a.corrected || lane < 20) {
    value = cuda::shuffle_xor(value, 31);
  } else {
    value = cuda::shuffle(value, 31 - lane);
  }
  block_of(a.y)[self()] = value;
}

VIMTRT_KERNEL void shuffle_while_others_wait(Arguments a) {
  const int lane = self() % 32;
  float value = cuda::load(block_of(a.x) + (kN - 32 - self() / 32 * 32) + lane);
  if (!a.corrected && lane == 0) cuda::sync_block();
  value = cuda::shuffle_xor(value, 31);
  block_of(a.y)[self()] = value;
}

VIMTRT_KERNEL void shuffle_from_no_lane(Arguments a) {
  const int lane = self() % 32;
  const float value = cuda::load(block_of(a.x) + (kN - 32 - self() / 32 * 32) + lane);
  block_of(a.y)[self()] = cuda::shuffle(value, a.corrected ? 31 - lane : 32 - lane);
}

VIMTRT_KERNEL void ldmatrix_misaligned(Arguments a) {
  fill_tile(a);
  uint32_t rows[4];
  cuda::ldmatrix_x4(rows, tile() + (a.corrected ? self() % 32 / 8 * 4 : 1));
  block_of(a.y)[self()] = tile()[mirror()] + (rows[0] == rows[1] ? 1.0f : 0.0f);
}

VIMTRT_KERNEL void ldmatrix_outside(Arguments a) {
  fill_tile(a);
  uint32_t rows[4];
  cuda::ldmatrix_x4(rows, tile() + (a.corrected || self() % 32 != 4 ? self() % 32 / 8 * 4 : kN));
  block_of(a.y)[self()] = tile()[mirror()] + (rows[0] == rows[1] ? 1.0f : 0.0f);
}

// Others

VIMTRT_DEVICE int count_down(int n) {
  volatile int left = n;
  return left == 0 ? 0 : count_down(left - 1) + (left > 0 ? 1 : 0);
}

VIMTRT_KERNEL void stack_too_deep(Arguments a) {
  const int depth = count_down(a.corrected ? 10 : 1000000);
  block_of(a.y)[self()] = depth > 0 ? cuda::load(block_of(a.x) + mirror()) : 0.0f;
}

VIMTRT_KERNEL void division_by_zero(Arguments a) {
  const int divisor = a.corrected ? 1 : self() / kN;
  block_of(a.y)[self()] = cuda::load(block_of(a.x) + mirror() / divisor);
}

VIMTRT_KERNEL void variable_not_initialized(Arguments a) {
  float values[4];
  for (int i = 0; i < (a.corrected ? 4 : 3); ++i) values[i] = cuda::load(block_of(a.x) + mirror() / 4 * 4 + i);
  block_of(a.y)[self()] = values[mirror() % 4];
}

struct Fault {
  const char* name;
  void (*kernel)(Arguments);
  size_t shared_bytes = kTileBytes;
};

const Fault kFaults[] = {
    {"missing barrier after a write", missing_barrier_after_write},
    {"missing barrier, lower threads read", missing_barrier_for_lower_threads},
    {"missing barrier, upper threads read", missing_barrier_for_upper_threads},
    {"missing barrier before an overwrite", missing_barrier_before_overwrite},
    {"missing sync_warp", missing_sync_warp},
    {"missed barrier", missed_barrier},
    {"different barriers", different_barriers},
    {"written by all", written_by_all},
    {"sync_warp between warps", sync_warp_between_warps},
    {"shuffle for a barrier", shuffle_for_a_barrier},
    {"ldmatrix without a barrier", ldmatrix_without_barrier},
    {"shared read past the end", shared_read_past_the_end},
    {"shared write past the end", shared_write_past_the_end},
    {"shared read just past the end", shared_read_just_past_the_end, kTileBytes + 4},
    {"shared write just past the end", shared_write_just_past_the_end, kTileBytes + 4},
    {"shared read before the start", shared_read_before_the_start},
    {"shared write before the start", shared_write_before_the_start},
    {"global read past the end", global_read_past_the_end},
    {"global read before the start", global_read_before_the_start},
    {"global write past the end", global_write_past_the_end},
    {"global write before the start", global_write_before_the_start},
    {"load past the end", load_past_the_end},
    {"load misaligned", load_misaligned},
    {"vector read misaligned", misaligned_vector_read},
    {"vector write misaligned", misaligned_vector_write},
    {"load of what is written", load_of_what_is_written},
    {"write into an input", write_into_an_input},
    {"uninitialized shared read", uninitialized_shared_read},
    {"shared memory of another block", shared_memory_of_another_block},
    {"output not written", output_not_written},
    {"blocks depend on their order", blocks_depend_on_order},
    {"blocks read each other", blocks_read_each_other},
    {"copy not waited for", copy_not_waited_for},
    {"copy not committed", copy_not_committed},
    {"copy of a later group", copy_of_a_later_group},
    {"copy without a barrier", copy_without_barrier},
    {"copy over what is read", copy_over_what_is_read},
    {"copy left behind", copy_left_behind},
    {"copy misaligned", copy_misaligned},
    {"copy from outside", copy_from_outside},
    {"copy to outside", copy_to_outside},
    {"copy of too many bytes", copy_of_too_many_bytes},
    {"copy that is not cleared", copy_that_is_not_cleared},
    {"divergent shuffle", divergent_shuffle},
    {"different warp calls", different_warp_calls},
    {"shuffle while others wait", shuffle_while_others_wait},
    {"shuffle from no lane", shuffle_from_no_lane},
    {"ldmatrix misaligned", ldmatrix_misaligned},
    {"ldmatrix outside", ldmatrix_outside},
    {"division by zero", division_by_zero},
    {"stack too deep", stack_too_deep},
    {"variable not initialized", variable_not_initialized},
};

}  // namespace

std::vector<std::string> fault_names() {
  std::vector<std::string> names;
  for (const Fault& fault : kFaults) names.push_back(fault.name);
  return names;
}

int run_fault(const std::string& name, bool corrected, const float* x, float* y, cuda::Stream stream) {
  for (const Fault& fault : kFaults) {
    if (name == fault.name) {
      return cuda::launch(fault.kernel, cuda::Grid{kBlocks}, kThreads, fault.shared_bytes, stream,
                          Arguments{x, y, corrected});
    }
  }
  throw std::invalid_argument("there is no fault " + name);
}

}  // namespace planted
}  // namespace vimtrt
