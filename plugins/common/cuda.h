// Every CUDA construct that the kernels use, under one name on a GPU and on the CPU double (tests/cuda_on_cpu). A
// kernel.cu includes this file and nothing else of CUDA, so the same file compiles with nvcc and, with
// VIMTRT_CUDA_ON_CPU defined, with g++.
//
//   VIMTRT_KERNEL void scale_kernel(const float* x, float* y, int n) {
//     float* tile = cuda::dynamic_shared<float>();
//     const int i = cuda::block_x() * cuda::threads_x() + cuda::thread_x();
//     ...
//     cuda::sync_block();
//   }
//   // 0, or a cudaError_t
//   const int status = cuda::launch(scale_kernel, cuda::Grid{blocks}, threads, shared_bytes, stream, x, y, n);
//
// Rules for kernels: shared memory is dynamic only (the double guards and poisons it); blocks are one-dimensional, up
// to 1024 threads; warps are 32 threads and warp-wide calls (shuffles, mma, ldmatrix, sync_warp) are made by all 32;
// floating point is written with the functions below or with plain operators, compiled with -fmad=false, so that a
// multiply-add is fused only where fmaf is written.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plugins/common/stream.h"

#ifdef VIMTRT_CUDA_ON_CPU
#include "tests/cuda_on_cpu/cuda_on_cpu.h"
#else

#include <cuda_runtime.h>

#define VIMTRT_KERNEL static __global__
// The same for a kernel of that many threads, its registers limited such that `blocks` of it fit a processor.
#define VIMTRT_KERNEL_OF(threads, blocks) static __global__ __launch_bounds__(threads, blocks)
#define VIMTRT_DEVICE static __device__ __forceinline__
// Of a kernel's parameter of which references are taken: it stays where the launch put it.
#define VIMTRT_GRID_CONSTANT __grid_constant__

namespace vimtrt {
namespace cuda {

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

VIMTRT_DEVICE unsigned thread_x() { return threadIdx.x; }
VIMTRT_DEVICE unsigned threads_x() { return blockDim.x; }
VIMTRT_DEVICE unsigned block_x() { return blockIdx.x; }
VIMTRT_DEVICE unsigned block_y() { return blockIdx.y; }
VIMTRT_DEVICE unsigned block_z() { return blockIdx.z; }
VIMTRT_DEVICE unsigned grid_x() { return gridDim.x; }

// The block's dynamic shared memory, 16-byte aligned.
template <class T>
VIMTRT_DEVICE T* dynamic_shared() {
  extern __shared__ uint4 vimtrt_dynamic_shared[];
  return reinterpret_cast<T*>(vimtrt_dynamic_shared);
}

VIMTRT_DEVICE void sync_block() { __syncthreads(); }
VIMTRT_DEVICE void sync_warp() { __syncwarp(); }

template <class T>
VIMTRT_DEVICE T shuffle_xor(T value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
template <class T>
VIMTRT_DEVICE T shuffle(T value, int source_lane) {
  return __shfl_sync(0xffffffffu, value, source_lane);
}

// Reads of global memory that no thread writes during the kernel. T is a scalar or one of int2, int4, uint2, uint4,
// float2, float4; p is aligned to it.
template <class T>
VIMTRT_DEVICE T load(const T* p) {
  return __ldg(p);
}

// c plus the sum of the products of a's and b's bytes, signed, byte by byte.
VIMTRT_DEVICE int32_t dp4a(int32_t a, int32_t b, int32_t c) { return __dp4a(a, b, c); }

// Byte i of the result is the one that the low three bits of hexadecimal digit i of `selector` name: 0..3 from
// a, 4..7 from b.
VIMTRT_DEVICE uint32_t byte_permute(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }

// d += a * b, int8 with int32 sums, one warp: m16n8k32, a row-major, b column-major (PTX
// mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32). With g = lane / 4, t = lane % 4:
//
//   a[0]  row g,     columns 4 t .. 4 t + 3               b[0]        column g, rows 4 t .. 4 t + 3
//   a[1]  row g + 8, the same columns                     b[1]        column g, rows 16 + 4 t .. 16 + 4 t + 3
//   a[2]  row g,     columns 16 + 4 t .. 16 + 4 t + 3     d[0], d[1]  row g,     columns 2 t, 2 t + 1
//   a[3]  row g + 8, the same columns                     d[2], d[3]  row g + 8, the same columns
VIMTRT_DEVICE void mma_s8_m16n8k32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Loads four 8 x 8 matrices of 16-bit elements (rows of 16 bytes) from shared memory: lane i gives the address, aligned
// to 16, of row i % 8 of matrix i / 8. r[m] receives elements 2 (lane % 4) and 2 (lane % 4) + 1 of row lane / 4 of
// matrix m, which are its bytes 4 (lane % 4) .. + 3.
VIMTRT_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Asynchronous copy of `bytes` (0..Size) bytes from global to shared memory, the rest of the Size bytes being set to
// zero. Size is 4, 8 or 16, and both addresses are aligned to it. Visible to the thread after wait_copies, to the
// others after a barrier that follows.
template <int Size>
VIMTRT_DEVICE void copy_async(void* shared, const void* global, int bytes) {
  static_assert(Size == 4 || Size == 8 || Size == 16, "cp.async copies 4, 8 or 16 bytes");
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (Size == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global), "r"(bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(Size), "r"(bytes)
                 : "memory");
  }
}
VIMTRT_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `Pending` of this thread's committed groups are still under way.
template <int Pending>
VIMTRT_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Processors of the current GPU: for choosing among ways that give the same bits.
inline int processors() {
  int device = 0, count = 0;
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
  return known ? count : 108;
}

// Starts a kernel; asynchronous. Returns 0 or a cudaError_t. Asks for more than 48 KiB of shared memory
// where that is needed.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), Grid grid, unsigned threads, size_t shared_bytes, Stream stream,
           Arguments... arguments) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return static_cast<int>(status);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return static_cast<int>(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace cuda
}  // namespace vimtrt

#endif
