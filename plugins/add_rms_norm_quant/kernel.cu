// AddRMSNormQuant on a GPU (docs/numerics.md). README.md beside this file has the numbers.
//
// Grid:   x = rows (images times tokens), kWarps in a block; further rows in steps of the grid.
// Block:  kWarps warps, each one row at a time. Shared: none.
//
// The contract's 32 partial sums are the lanes of a warp, so a lane takes features lane, lane + 32, .. : a warp reads 32 floats that follow
// each other, a whole line, and the tree over the partial sums is five exchanges. A row of up to kGroups groups of 128 features stays in
// registers between the sum and the scaling; longer rows read again what they wrote, each lane its own features.
//
// What a lane quantizes are features 32 apart; before the store the warp exchanges bytes so that a lane has four that follow each other:
//
//   group of 128 features      lane 0   lane 1   ..   lane 8   ..   lane 31
//   quantized, a byte each     0, 32,   1, 33,        8, 40,        31, 63,
//                              64, 96   65, 97        72, 104       95, 127
//   stored, a word each        0 .. 3   4 .. 7        32 .. 35      124 .. 127
//
// residual_out may be the memory of residual or hidden: a lane reads a feature of both before it writes it, and no other lane touches it.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "plugins/add_rms_norm_quant/kernel.h"
#include "plugins/common/cuda.h"
#include "plugins/common/numerics.h"

namespace vimtrt {
namespace {

constexpr int kWarpThreads = 32;
constexpr int kWarps = 2;
constexpr int kThreads = kWarps * kWarpThreads;
constexpr int kGroupSteps = 4;  // features of a lane in a group: the bytes of a word
constexpr int kGroupFeatures = kGroupSteps * kWarpThreads;
constexpr int64_t kMaxGridX = 2147483647;

// One row as a lane sees it.
struct Row {
  const float* hidden;
  const float* residual;
  float* residual_out;
  int8_t* y;
};

// A lane's features of one group from `first` on, and their squares added to `sum`. A feature that does not exist adds fma(0, 0, p) = p.
VIMTRT_DEVICE float read_group(const Row& row, int first, int features, float (&r)[kGroupSteps], float sum) {
#pragma unroll
  for (int k = 0; k < kGroupSteps; ++k) {
    const int i = first + k * kWarpThreads;
    r[k] = i < features ? row.residual[i] + row.hidden[i] : 0.0f;
  }
#pragma unroll
  for (int k = 0; k < kGroupSteps; ++k) sum = fmaf(r[k], r[k], sum);
  return sum;
}

// Apart from the reads: the memory may be theirs, so the compiler lets no read pass a write, and each would wait for the one before.
VIMTRT_DEVICE void write_group(const Row& row, int first, int features, const float (&r)[kGroupSteps]) {
#pragma unroll
  for (int k = 0; k < kGroupSteps; ++k) {
    const int i = first + k * kWarpThreads;
    if (i < features) row.residual_out[i] = r[k];
  }
}

// The contract's tree: p[j] += p[j + s] for j < s. All lanes get what lane 0 has, since a + b is b + a.
VIMTRT_DEVICE float sum_of_warp(float sum) {
#pragma unroll
  for (int s = kWarpThreads / 2; s > 0; s /= 2) sum += cuda::shuffle_xor(sum, s);
  return sum;
}

// Quantizes a lane's features of one group and stores the warp's 128 bytes.
VIMTRT_DEVICE void store_group(const AddRmsNormQuantParams& p, const Row& row, int first_of_group, const float (&r)[kGroupSteps], float k,
                               float inv_scale, bool stores_words) {
  const int lane = static_cast<int>(cuda::thread_x()) % kWarpThreads;
  uint32_t mine = 0;
#pragma unroll
  for (int step = 0; step < kGroupSteps; ++step) {
    const int i = first_of_group + lane + step * kWarpThreads;
    const float gain = i < p.features ? cuda::load(p.gain + i) : 0.0f;
    const float w = ((r[step] * k) * gain) * inv_scale;
    mine |= static_cast<uint32_t>(static_cast<uint8_t>(quantize_s8(w))) << (8 * step);
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
    if (first < p.features) *reinterpret_cast<uint32_t*>(row.y + first) = word;
    return;
  }
#pragma unroll
  for (int byte = 0; byte < 4; ++byte) {
    if (first + byte < p.features) row.y[first + byte] = static_cast<int8_t>(word >> (8 * byte));
  }
}

// Groups = 0: a row of any length.
template <int Groups>
VIMTRT_KERNEL void add_rms_norm_quant_kernel(AddRmsNormQuantParams p, bool stores_words) {
  const int warp = static_cast<int>(cuda::thread_x()) / kWarpThreads, lane = static_cast<int>(cuda::thread_x()) % kWarpThreads;
  const int64_t rows_at_once = static_cast<int64_t>(cuda::grid_x()) * kWarps;
  for (int64_t at = static_cast<int64_t>(cuda::block_x()) * kWarps + warp; at < p.rows; at += rows_at_once) {
    const int64_t token = at % p.tokens, start = at * p.features;
    const Row row{p.hidden + start, p.residual + (p.residual_is_shared ? token * p.features : start), p.residual_out + start, p.y + start};
    float r[Groups > 0 ? Groups : 1][kGroupSteps];
    float sum = 0.0f;
    if constexpr (Groups > 0) {
#pragma unroll
      for (int g = 0; g < Groups; ++g) sum = read_group(row, g * kGroupFeatures + lane, p.features, r[g], sum);
#pragma unroll
      for (int g = 0; g < Groups; ++g) write_group(row, g * kGroupFeatures + lane, p.features, r[g]);
    } else {
      for (int first = lane; first < p.features; first += kGroupFeatures) {
        sum = read_group(row, first, p.features, r[0], sum);
        write_group(row, first, p.features, r[0]);
      }
    }
    const float k = 1.0f / sqrtf(sum_of_warp(sum) / static_cast<float>(p.features) + p.epsilon);
    const float inv_scale = cuda::load(p.inv_scale_tok + token);
    if constexpr (Groups > 0) {
#pragma unroll
      for (int g = 0; g < Groups; ++g) store_group(p, row, g * kGroupFeatures, r[g], k, inv_scale, stores_words);
    } else {
      for (int first = 0; first < p.features; first += kGroupFeatures) {
#pragma unroll
        for (int step = 0; step < kGroupSteps; ++step) {
          const int i = first + lane + step * kWarpThreads;
          r[0][step] = i < p.features ? row.residual_out[i] : 0.0f;
        }
        store_group(p, row, first, r[0], k, inv_scale, stores_words);
      }
    }
  }
}

template <int Groups>
int launch_groups(const AddRmsNormQuantParams& p, cuda::Stream stream) {
  cuda::Grid grid;
  grid.x = static_cast<unsigned>(std::min((p.rows + kWarps - 1) / kWarps, kMaxGridX));
  const bool stores_words = (reinterpret_cast<uintptr_t>(p.y) | static_cast<uint32_t>(p.features)) % sizeof(uint32_t) == 0;
  return cuda::launch(add_rms_norm_quant_kernel<Groups>, grid, kThreads, 0, stream, p, stores_words);
}

}  // namespace

int add_rms_norm_quant_launch(const AddRmsNormQuantParams& params, cuda::Stream stream) {
  if (params.rows == 0) return 0;
  if (params.features <= 2 * kGroupFeatures) return launch_groups<2>(params, stream);
  if (params.features <= 4 * kGroupFeatures) return launch_groups<4>(params, stream);
  if (params.features <= 6 * kGroupFeatures) return launch_groups<6>(params, stream);
  return launch_groups<0>(params, stream);
}

}  // namespace vimtrt
