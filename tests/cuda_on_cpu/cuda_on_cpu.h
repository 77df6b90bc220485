// The CPU test double of plugins/common/cuda.h: the same names, so that a kernel.cu compiles with g++ and runs on host
// memory. Threads of a block are fibers on the calling thread, blocks run one after the other. What a kernel must not
// do ends the launch with an error: launch returns a cudaError_t, cuda_on_cpu::last_error() says what happened and
// where. What a kernel should not need is missing here, so it does not compile. How to choose schedule, poison and
// placement: control.h. What is found and what is not: README.md.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "plugins/common/stream.h"

#define VIMTRT_KERNEL static
#define VIMTRT_KERNEL_OF(threads, blocks) static
#define VIMTRT_DEVICE static inline

// The vector types of CUDA that cuda.h names.
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

#define VIMTRT_GRID_CONSTANT

namespace vimtrt {
namespace cuda {

// Where it was written names the launch in errors.
struct Grid {
  unsigned x = 1, y = 1, z = 1;
  const char* function = __builtin_FUNCTION();
  const char* file = __builtin_FILE();
  int line = __builtin_LINE();
};

}  // namespace cuda

namespace cuda_on_cpu {

// The thread that runs and its block.
struct Now {
  unsigned thread = 0, threads = 0;
  unsigned block_x = 0, block_y = 0, block_z = 0;
  unsigned grid_x = 0;
  unsigned char* shared = nullptr;
};
extern Now now;

using Body = void (*)(const void* closure);

int run_grid(const cuda::Grid& grid, unsigned threads, size_t shared_bytes, Body body, const void* closure);
void wait_block(int line);
void wait_warp(int line);
uint64_t exchange(uint64_t bits, int source_lane, const char* name, int line);
void multiply(int32_t* d, const uint32_t* a, const uint32_t* b, int line);
void load_matrices(uint32_t* r, const void* shared_row, int line);
void start_copy(int size, void* shared, const void* global, int bytes, int line);
void commit_group();
void wait_groups(int pending);
void check_load(const void* p, size_t bytes, int line);

template <class T>
T exchange_value(T value, int source_lane, const char* name, int line) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8),
                "shuffles move numbers of 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(bits, source_lane, name, line);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T, class... Types>
constexpr bool is_one_of = (std::is_same<T, Types>::value || ...);

}  // namespace cuda_on_cpu

namespace cuda {

// The line of a call belongs to it: threads that wait together must have come to the same line.

inline unsigned thread_x() { return cuda_on_cpu::now.thread; }
inline unsigned threads_x() { return cuda_on_cpu::now.threads; }
inline unsigned block_x() { return cuda_on_cpu::now.block_x; }
inline unsigned block_y() { return cuda_on_cpu::now.block_y; }
inline unsigned block_z() { return cuda_on_cpu::now.block_z; }
inline unsigned grid_x() { return cuda_on_cpu::now.grid_x; }

template <class T>
T* dynamic_shared() {
  static_assert(alignof(T) <= 16, "shared memory is aligned to 16 bytes");
  return reinterpret_cast<T*>(cuda_on_cpu::now.shared);
}

inline void sync_block(int line = __builtin_LINE()) { cuda_on_cpu::wait_block(line); }
inline void sync_warp(int line = __builtin_LINE()) { cuda_on_cpu::wait_warp(line); }

template <class T>
T shuffle_xor(T value, int lane_mask, int line = __builtin_LINE()) {
  const int lane = static_cast<int>(cuda_on_cpu::now.thread % 32);
  return cuda_on_cpu::exchange_value(value, lane ^ lane_mask, "shuffle_xor", line);
}
template <class T>
T shuffle(T value, int source_lane, int line = __builtin_LINE()) {
  return cuda_on_cpu::exchange_value(value, source_lane, "shuffle", line);
}

template <class T>
T load(const T* p, int line = __builtin_LINE()) {
  static_assert((std::is_arithmetic<T>::value && !std::is_same<T, bool>::value) ||
                    cuda_on_cpu::is_one_of<T, int2, int4, uint2, uint4, float2, float4>,
                "load takes numbers and int2, int4, uint2, uint4, float2, float4");
  cuda_on_cpu::check_load(p, sizeof(T), line);
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

inline int32_t dp4a(int32_t a, int32_t b, int32_t c) {
  uint32_t sum = static_cast<uint32_t>(c);  // wraps, as on a GPU
  for (int i = 0; i < 4; ++i)
    sum += static_cast<uint32_t>(static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i)));
  return static_cast<int32_t>(sum);
}

inline uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<uint32_t>(bytes >> (8 * (selector >> (4 * i) & 7)) & 255) << (8 * i);
  return result;
}

inline void mma_s8_m16n8k32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            int line = __builtin_LINE()) {
  cuda_on_cpu::multiply(d, a, b, line);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row, int line = __builtin_LINE()) {
  cuda_on_cpu::load_matrices(r, shared_row, line);
}

template <int Size>
void copy_async(void* shared, const void* global, int bytes, int line = __builtin_LINE()) {
  static_assert(Size == 4 || Size == 8 || Size == 16, "cp.async copies 4, 8 or 16 bytes");
  cuda_on_cpu::start_copy(Size, shared, global, bytes, line);
}
inline void commit_copies() { cuda_on_cpu::commit_group(); }

template <int Pending>
void wait_copies() {
  static_assert(Pending >= 0, "a number of groups");
  cuda_on_cpu::wait_groups(Pending);
}

inline int processors() { return 132; }  // an H100's

// Runs the kernel to its end.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), Grid grid, unsigned threads, size_t shared_bytes, Stream,
           Arguments... arguments) {
  static_assert(((std::is_trivially_copyable<Parameters>::value && !std::is_reference<Parameters>::value) && ...),
                "parameters are copied to the device byte by byte");
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "a kernel takes at most 4 KiB of parameters");
  const std::tuple<Parameters...> parameters(static_cast<Parameters>(arguments)...);
  const auto thread = [&] { std::apply(kernel, parameters); };
  using Thread = decltype(thread);
  return cuda_on_cpu::run_grid(
      grid, threads, shared_bytes, [](const void* closure) { (*static_cast<const Thread*>(closure))(); }, &thread);
}

}  // namespace cuda
}  // namespace vimtrt
