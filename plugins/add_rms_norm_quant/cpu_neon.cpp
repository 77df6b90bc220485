// AddRMSNormQuant with NEON: the contract's 32 partial sums are the lanes of eight registers.
#include <arm_neon.h>

#include <cmath>

#include "plugins/add_rms_norm_quant/cpu.h"
#include "plugins/common/norm.h"
#include "plugins/common/numerics.h"

namespace vimtrt {
namespace {

void normalize_row(const AddRmsNormQuantParams& p, int64_t row) {
  const int64_t token = row % p.tokens;
  const float* hidden = p.hidden + row * p.features;
  const float* residual = p.residual + (p.residual_is_shared ? token : row) * p.features;
  float* out = p.residual_out + row * p.features;
  int8_t* y = p.y + row * p.features;

  float32x4_t sums[kPartialSums / 4];
  for (float32x4_t& sum : sums) sum = vdupq_n_f32(0.0f);
  int32_t i = 0;
  for (; i + kPartialSums <= p.features; i += kPartialSums) {
    for (int j = 0; j < kPartialSums / 4; ++j) {
      const float32x4_t r = vaddq_f32(vld1q_f32(residual + i + 4 * j), vld1q_f32(hidden + i + 4 * j));
      vst1q_f32(out + i + 4 * j, r);
      sums[j] = vfmaq_f32(sums[j], r, r);
    }
  }
  float partial[kPartialSums];
  for (int j = 0; j < kPartialSums / 4; ++j) vst1q_f32(partial + 4 * j, sums[j]);
  for (int j = 0; i < p.features; ++i, ++j) {
    const float r = residual[i] + hidden[i];
    out[i] = r;
    partial[j] = std::fma(r, r, partial[j]);
  }
  const float k = inverse_root_of(tree_sum(partial), p.features, p.epsilon);
  const float inv_scale = p.inv_scale_tok[token];
  i = 0;
  for (; i + 8 <= p.features; i += 8) {
    int32x4_t q[2];
    for (int v = 0; v < 2; ++v) {
      const float32x4_t scaled = vmulq_f32(vmulq_n_f32(vld1q_f32(out + i + 4 * v), k), vld1q_f32(p.gain + i + 4 * v));
      // The maximum is for NaN.
      q[v] = vcvtnq_s32_f32(vmaxnmq_f32(vmulq_n_f32(scaled, inv_scale), vdupq_n_f32(-128.0f)));
    }
    vst1_s8(y + i, vqmovn_s16(vcombine_s16(vqmovn_s32(q[0]), vqmovn_s32(q[1]))));
  }
  for (; i < p.features; ++i) y[i] = quantize_s8(((out[i] * k) * p.gain[i]) * inv_scale);
}

void run(const AddRmsNormQuantParams& p, const void*, void*, int threads) { run_rows<normalize_row>(p, threads); }

}  // namespace

const CpuKernels<AddRmsNormQuantParams> kAddRmsNormQuantNeon = {no_packed_bytes, no_pack, no_scratch_bytes, run};

}  // namespace vimtrt
