// What the norms share on a GPU: a warp takes a row, and the contract's 32 partial sums are its lanes.
//
// A lane takes features lane, lane + 32, .. : a warp reads 32 floats that follow each other, a whole line, and the tree
// over the partial sums is five exchanges. A row of up to kGroups groups of 128 features stays in registers; longer
// rows read again what they wrote, each lane its own features.
//
// What a lane quantizes are features 32 apart; before the store the warp exchanges bytes so that a lane has four that
// follow each other:
//
//   group of 128 features      lane 0   lane 1   ..   lane 8   ..   lane 31
//   quantized, a byte each     0, 32,   1, 33,        8, 40,        31, 63,
//                              64, 96   65, 97        72, 104       95, 127
//   stored, a word each        0 .. 3   4 .. 7        32 .. 35      124 .. 127
//
// residual_out may be the memory of residual or hidden: a lane reads a feature of both before it writes it, and no
// other lane touches it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "plugins/common/cuda_copies.h"
#include "plugins/common/cuda_launch.h"
#include "plugins/common/cuda_warp.h"
#include "plugins/common/numerics.h"

namespace vimtrt {
namespace norm {

using cuda::kWarpThreads;
constexpr int kWarps = 2;  // of a block
constexpr int kThreads = kWarps * kWarpThreads;
constexpr int kGroupSteps = 4;  // features of a lane in a group: the bytes of a word
constexpr int kGroupFeatures = kGroupSteps * kWarpThreads;

// One row as a lane sees it.
struct Row {
  const float* hidden;
  const float* residual;
  float* residual_out;
  int8_t* y;
};

template <class Params>
VIMTRT_DEVICE Row row_of(const Params& p, int64_t at, int64_t token) {
  const int64_t start = at * p.features;
  return {p.hidden + start, p.residual + (p.residual_is_shared ? token * p.features : start), p.residual_out + start,
          p.y + start};
}

// A lane's features of one group from `first` on; 0 where there is none.
VIMTRT_DEVICE void read_group(const Row& row, int first, int features, float (&r)[kGroupSteps]) {
#pragma unroll
  for (int k = 0; k < kGroupSteps; ++k) {
    const int i = first + k * kWarpThreads;
    r[k] = i < features ? row.residual[i] + row.hidden[i] : 0.0f;
  }
}

// The same from what was written.
VIMTRT_DEVICE void read_written(const Row& row, int first, int features, float (&r)[kGroupSteps]) {
#pragma unroll
  for (int k = 0; k < kGroupSteps; ++k) {
    const int i = first + k * kWarpThreads;
    r[k] = i < features ? row.residual_out[i] : 0.0f;
  }
}

// Apart from the reads: the memory may be theirs, so the compiler lets no read pass a write, and each would wait for
// the one before.
VIMTRT_DEVICE void write_group(const Row& row, int first, int features, const float (&r)[kGroupSteps]) {
#pragma unroll
  for (int k = 0; k < kGroupSteps; ++k) {
    const int i = first + k * kWarpThreads;
    if (i < features) row.residual_out[i] = r[k];
  }
}

// Quantizes a lane's features of one group, value(step, i) being that of feature i, and stores the warp's 128 bytes.
template <class Value>
VIMTRT_DEVICE void store_group(const Row& row, int features, int first_of_group, bool stores_words,
                               const Value& value) {
  const int lane = cuda::lane();
  uint32_t mine = 0;
#pragma unroll
  for (int step = 0; step < kGroupSteps; ++step) {
    const int i = first_of_group + lane + step * kWarpThreads;
    mine |= static_cast<uint32_t>(static_cast<uint8_t>(quantize_s8(value(step, i)))) << (8 * step);
  }
  const int shift = 8 * (lane / 8);  // the features of this lane's word are those of one step
  uint32_t word = 0;
#pragma unroll
  for (int byte = 0; byte < 4; ++byte) {
    const uint32_t theirs = cuda::shuffle(mine, (4 * lane + byte) % kWarpThreads);
    word |= (theirs >> shift & 255u) << (8 * byte);
  }
  const int first = first_of_group + 4 * lane;
  if (stores_words) {
    if (first < features) *reinterpret_cast<uint32_t*>(row.y + first) = word;
    return;
  }
#pragma unroll
  for (int byte = 0; byte < 4; ++byte) {
    if (first + byte < features) row.y[first + byte] = static_cast<int8_t>(word >> (8 * byte));
  }
}

// A kernel for rows of up to 2, 4 and 6 groups, and one for rows of any length.
template <class Params>
struct Kernels {
  using Kernel = void (*)(Params params, bool stores_words);
  Kernel groups2, groups4, groups6, any;
};

template <class Params>
int launch(const Kernels<Params>& kernels, const Params& p, cuda::Stream stream) {
  if (p.rows == 0) return 0;
  const auto kernel = p.features <= 2 * kGroupFeatures   ? kernels.groups2
                      : p.features <= 4 * kGroupFeatures ? kernels.groups4
                      : p.features <= 6 * kGroupFeatures ? kernels.groups6
                                                         : kernels.any;
  const cuda::Grid grid{static_cast<unsigned>(std::min(cuda::ceil_div(p.rows, kWarps), cuda::kMaxGridX))};
  const bool stores_words = cuda::width_of(cuda::address(p.y) | static_cast<uint64_t>(p.features)) >= 4;
  return cuda::launch(kernel, grid, kThreads, 0, stream, p, stores_words);
}

}  // namespace norm
}  // namespace vimtrt
