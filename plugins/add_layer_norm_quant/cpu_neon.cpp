// AddLayerNormQuant with NEON: the contract's 32 partial sums are the lanes of eight registers.
#include <arm_neon.h>

#include <cmath>

#include "plugins/add_layer_norm_quant/cpu.h"
#include "plugins/common/norm.h"
#include "plugins/common/numerics.h"

namespace vimtrt {
namespace {

constexpr int kVectors = kPartialSums / 4;

void normalize_row(const AddLayerNormQuantParams& p, int64_t row) {
  const int64_t token = row % p.tokens;
  const float* hidden = p.hidden + row * p.features;
  const float* residual = p.residual + (p.residual_is_shared ? token : row) * p.features;
  float* out = p.residual_out + row * p.features;
  int8_t* y = p.y + row * p.features;
  const int32_t whole = p.features / kPartialSums * kPartialSums;  // features in whole rows of the partial sums

  float32x4_t sums[kVectors];
  float partial[kPartialSums];
  for (float32x4_t& sum : sums) sum = vdupq_n_f32(0.0f);
  for (int32_t i = 0; i < whole; i += kPartialSums) {
    for (int j = 0; j < kVectors; ++j) {
      const float32x4_t r = vaddq_f32(vld1q_f32(residual + i + 4 * j), vld1q_f32(hidden + i + 4 * j));
      vst1q_f32(out + i + 4 * j, r);
      sums[j] = vaddq_f32(sums[j], r);
    }
  }
  for (int j = 0; j < kVectors; ++j) vst1q_f32(partial + 4 * j, sums[j]);
  for (int32_t i = whole; i < p.features; ++i) {
    out[i] = residual[i] + hidden[i];
    partial[i - whole] += out[i];
  }
  const float mean = tree_sum(partial) / static_cast<float>(p.features);

  for (float32x4_t& sum : sums) sum = vdupq_n_f32(0.0f);
  for (int32_t i = 0; i < whole; i += kPartialSums) {
    for (int j = 0; j < kVectors; ++j) {
      const float32x4_t d = vsubq_f32(vld1q_f32(out + i + 4 * j), vdupq_n_f32(mean));
      sums[j] = vfmaq_f32(sums[j], d, d);
    }
  }
  for (int j = 0; j < kVectors; ++j) vst1q_f32(partial + 4 * j, sums[j]);
  for (int32_t i = whole; i < p.features; ++i) {
    const float d = out[i] - mean;
    partial[i - whole] = std::fma(d, d, partial[i - whole]);
  }
  const float k = inverse_root_of(tree_sum(partial), p.features, p.epsilon);
  const float inv_scale = p.inv_scale_tok[token];

  int32_t i = 0;
  for (; i + 8 <= p.features; i += 8) {
    int32x4_t q[2];
    for (int v = 0; v < 2; ++v) {
      const int32_t at = i + 4 * v;
      const float32x4_t scaled = vmulq_n_f32(vsubq_f32(vld1q_f32(out + at), vdupq_n_f32(mean)), k);
      const float32x4_t w = vmulq_n_f32(vfmaq_f32(vld1q_f32(p.shift + at), scaled, vld1q_f32(p.gain + at)), inv_scale);
      q[v] = vcvtnq_s32_f32(vmaxnmq_f32(w, vdupq_n_f32(-128.0f)));  // the maximum is for NaN
    }
    vst1_s8(y + i, vqmovn_s16(vcombine_s16(vqmovn_s32(q[0]), vqmovn_s32(q[1]))));
  }
  for (; i < p.features; ++i) y[i] = quantize_s8(std::fma((out[i] - mean) * k, p.gain[i], p.shift[i]) * inv_scale);
}

void run(const AddLayerNormQuantParams& p, const void*, void*, int threads) { run_rows<normalize_row>(p, threads); }

}  // namespace

const CpuKernels<AddLayerNormQuantParams> kAddLayerNormQuantNeon = {no_packed_bytes, no_pack, no_scratch_bytes, run};

}  // namespace vimtrt
