// Kernels with one fault each and their corrected twins: what tests/test_cuda_on_cpu.py uses to show that the double sees the fault. And
// probes of what is right: every warp-wide call on given operands, and the limits of a launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "plugins/common/cuda.h"

namespace vimtrt {
namespace planted {

constexpr unsigned kBlocks = 3;
constexpr unsigned kThreads = 64;
constexpr unsigned kElements = kBlocks * kThreads;

// Every fault's kernel, corrected, reverses each block's part: y[block][i] = x[block][kThreads - 1 - i].
std::vector<std::string> fault_names();
int run_fault(const std::string& name, bool corrected, const float* x, float* y, cuda::Stream stream);

// d += a * b^T: a int8 [16, 32], b int8 [8, 32], d int32 [16, 8]; a comes through ldmatrix_x4 or with plain reads.
int multiply(const int8_t* a, const int8_t* b, int32_t* d, bool with_ldmatrix, cuda::Stream stream);

// xored[mask][lane] = shuffle_xor(x[lane], mask), sent[source][lane] = shuffle(x[lane], source); x of 32 numbers.
template <class T>
int shuffle(const T* x, T* xored, T* sent, cuda::Stream stream);

// d[i] = dp4a(a[i], b[i], c[i]) and d[i] = byte_permute(a[i], b[i], c[i]), the bits of 32 numbers.
int dp4a(const int32_t* a, const int32_t* b, const int32_t* c, int32_t* d, cuda::Stream stream);
int byte_permute(const int32_t* a, const int32_t* b, const int32_t* c, int32_t* d, cuda::Stream stream);

// y[i] = x[i] * factor, without shared memory.
int scale(const float* x, float factor, float* y, int n, cuda::Stream stream);

// A kernel that does nothing.
int launch_nothing(cuda::Grid grid, unsigned threads, size_t shared_bytes, cuda::Stream stream);

}  // namespace planted
}  // namespace vimtrt
