// AddRMSNormQuant in plain C++.
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

  float sums[kPartialSums] = {};
  for (int32_t i = 0; i < p.features; ++i) {
    const float r = residual[i] + hidden[i];
    out[i] = r;
    sums[i % kPartialSums] = std::fma(r, r, sums[i % kPartialSums]);
  }
  const float k = inverse_root_of(tree_sum(sums), p.features, p.epsilon);
  const float inv_scale = p.inv_scale_tok[token];
  for (int32_t i = 0; i < p.features; ++i) y[i] = quantize_s8(((out[i] * k) * p.gain[i]) * inv_scale);
}

void run(const AddRmsNormQuantParams& p, const void*, void*, int threads) { run_rows<normalize_row>(p, threads); }

}  // namespace

const CpuKernels<AddRmsNormQuantParams> kAddRmsNormQuantGeneric = {no_packed_bytes, no_pack, no_scratch_bytes, run};

}  // namespace vimtrt
