// AddLayerNormQuant on a GPU (docs/numerics.md): a warp for each row, as norm_cuda.h lays it out. README.md beside this
// file has the numbers.
//
// Grid:   x = rows (images times tokens), kWarps in a block; further rows in steps of the grid.
// Block:  kWarps warps, each one row at a time. Shared: none.
//
// A row of up to kGroups groups of 128 features stays in registers for the mean, the variance and the scaling: memory
// is passed once.
#include <cmath>

#include "plugins/add_layer_norm_quant/kernel.h"
#include "plugins/common/norm_cuda.h"

namespace vimtrt {
namespace {

using namespace norm;

// Adds a lane's squared distances from the mean. A feature that does not exist adds fma(0, 0, p) = p.
VIMTRT_DEVICE float add_squares(const float (&r)[kGroupSteps], int first, int features, float mean, float sum) {
#pragma unroll
  for (int k = 0; k < kGroupSteps; ++k) {
    const float d = first + k * kWarpThreads < features ? r[k] - mean : 0.0f;
    sum = fmaf(d, d, sum);
  }
  return sum;
}

VIMTRT_DEVICE float add_features(const float (&r)[kGroupSteps], float sum) {
#pragma unroll
  for (int k = 0; k < kGroupSteps; ++k) sum += r[k];
  return sum;
}

VIMTRT_DEVICE void store(const AddLayerNormQuantParams& p, const Row& row, int first_of_group,
                         const float (&r)[kGroupSteps], float mean, float k, float inv_scale, bool words) {
  store_group(row, p.features, first_of_group, words, [&](int step, int i) {
    const bool exists = i < p.features;
    const float gain = exists ? cuda::load(p.gain + i) : 0.0f, shift = exists ? cuda::load(p.shift + i) : 0.0f;
    return fmaf((r[step] - mean) * k, gain, shift) * inv_scale;
  });
}

// Groups = 0: a row of any length.
template <int Groups>
VIMTRT_KERNEL void add_layer_norm_quant_kernel(AddLayerNormQuantParams p, bool words) {
  const int warp = cuda::warp(), lane = cuda::lane();
  const int64_t rows_at_once = static_cast<int64_t>(cuda::grid_x()) * kWarps;
  const float features = static_cast<float>(p.features);
  for (int64_t at = static_cast<int64_t>(cuda::block_x()) * kWarps + warp; at < p.rows; at += rows_at_once) {
    const int64_t token = at % p.tokens;
    const Row row = row_of(p, at, token);
    const float inv_scale = cuda::load(p.inv_scale_tok + token);
    float r[Groups > 0 ? Groups : 1][kGroupSteps];
    float sum = 0.0f, squares = 0.0f;
    if constexpr (Groups > 0) {
#pragma unroll
      for (int g = 0; g < Groups; ++g) read_group(row, g * kGroupFeatures + lane, p.features, r[g]);
#pragma unroll
      for (int g = 0; g < Groups; ++g) sum = add_features(r[g], sum);
#pragma unroll
      for (int g = 0; g < Groups; ++g) write_group(row, g * kGroupFeatures + lane, p.features, r[g]);
      const float mean = cuda::sum_of_warp(sum) / features;
#pragma unroll
      for (int g = 0; g < Groups; ++g)
        squares = add_squares(r[g], g * kGroupFeatures + lane, p.features, mean, squares);
      const float k = 1.0f / sqrtf(cuda::sum_of_warp(squares) / features + p.epsilon);
#pragma unroll
      for (int g = 0; g < Groups; ++g) store(p, row, g * kGroupFeatures, r[g], mean, k, inv_scale, words);
    } else {
      for (int first = lane; first < p.features; first += kGroupFeatures) {
        read_group(row, first, p.features, r[0]);
        sum = add_features(r[0], sum);
        write_group(row, first, p.features, r[0]);
      }
      const float mean = cuda::sum_of_warp(sum) / features;
      for (int first = lane; first < p.features; first += kGroupFeatures) {
        read_written(row, first, p.features, r[0]);
        squares = add_squares(r[0], first, p.features, mean, squares);
      }
      const float k = 1.0f / sqrtf(cuda::sum_of_warp(squares) / features + p.epsilon);
      for (int first = 0; first < p.features; first += kGroupFeatures) {
        read_written(row, first + lane, p.features, r[0]);
        store(p, row, first, r[0], mean, k, inv_scale, words);
      }
    }
  }
}

}  // namespace

int add_layer_norm_quant_launch(const AddLayerNormQuantParams& params, cuda::Stream stream) {
  static constexpr Kernels<AddLayerNormQuantParams> kernels = {
      add_layer_norm_quant_kernel<2>, add_layer_norm_quant_kernel<4>, add_layer_norm_quant_kernel<6>,
      add_layer_norm_quant_kernel<0>};
  return norm::launch(kernels, params, stream);
}

}  // namespace vimtrt
