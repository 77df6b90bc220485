// AddLayerNormQuant in plain C++.
#include <cmath>

#include "plugins/add_layer_norm_quant/cpu.h"
#include "plugins/common/norm.h"
#include "plugins/common/numerics.h"

namespace vimtrt {
namespace {

void normalize_row(const AddLayerNormQuantParams& p, int64_t row) {
  const int64_t token = row % p.tokens;
  const float* hidden = p.hidden + row * p.features;
  const float* residual = p.residual + (p.residual_is_shared ? token : row) * p.features;
  float* out = p.residual_out + row * p.features;
  int8_t* y = p.y + row * p.features;

  float sums[kPartialSums] = {};
  for (int32_t i = 0; i < p.features; ++i) {
    const float r = residual[i] + hidden[i];
    out[i] = r;
    sums[i % kPartialSums] += r;
  }
  const float mean = tree_sum(sums) / static_cast<float>(p.features);
  float squares[kPartialSums] = {};
  for (int32_t i = 0; i < p.features; ++i) {
    const float d = out[i] - mean;
    squares[i % kPartialSums] = std::fma(d, d, squares[i % kPartialSums]);
  }
  const float k = inverse_root_of(tree_sum(squares), p.features, p.epsilon);
  const float inv_scale = p.inv_scale_tok[token];
  for (int32_t i = 0; i < p.features; ++i) {
    y[i] = quantize_s8(std::fma((out[i] - mean) * k, p.gain[i], p.shift[i]) * inv_scale);
  }
}

void run(const AddLayerNormQuantParams& p, const void*, void*, int threads) { run_rows<normalize_row>(p, threads); }

}  // namespace

const CpuKernels<AddLayerNormQuantParams> kAddLayerNormQuantGeneric = {no_packed_bytes, no_pack, no_scratch_bytes, run};

}  // namespace vimtrt
