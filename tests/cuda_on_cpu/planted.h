// Kernels with one fault each and their corrected twins: what tests/kernels/test_cuda_on_cpu.py uses to show that the
// double sees the fault.
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

}  // namespace planted
}  // namespace vimtrt
