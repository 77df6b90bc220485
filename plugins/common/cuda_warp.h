// A warp: which of it a thread is, and reductions over its lanes.
#pragma once

#include <cmath>
#include <cstdint>

#include "plugins/common/cuda.h"

namespace vimtrt {
namespace cuda {

constexpr int kWarpThreads = 32;

VIMTRT_DEVICE int lane() { return static_cast<int>(thread_x()) % kWarpThreads; }
VIMTRT_DEVICE int warp() { return static_cast<int>(thread_x()) / kWarpThreads; }

// The contract's tree over 32 partial sums: p[j] += p[j + s] for s = 16, 8, 4, 2, 1. All lanes get what lane 0 has,
// since a + b is b + a.
VIMTRT_DEVICE float sum_of_warp(float sum) {
#pragma unroll
  for (int s = kWarpThreads / 2; s > 0; s /= 2) sum += shuffle_xor(sum, s);
  return sum;
}

VIMTRT_DEVICE float max_of_warp(float most) {
#pragma unroll
  for (int s = kWarpThreads / 2; s > 0; s /= 2) most = fmaxf(most, shuffle_xor(most, s));
  return most;
}

VIMTRT_DEVICE uint32_t or_of_warp(uint32_t bits) {
#pragma unroll
  for (int s = kWarpThreads / 2; s > 0; s /= 2) bits |= shuffle_xor(bits, s);
  return bits;
}

}  // namespace cuda
}  // namespace vimtrt
