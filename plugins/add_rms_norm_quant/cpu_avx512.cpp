// AddRMSNormQuant with AVX-512.
#include "plugins/add_rms_norm_quant/cpu.h"
#include "plugins/common/norm.h"
#include "plugins/common/norm_avx512.h"

namespace vimtrt {
namespace {

// Adds 16 features, stores the sum and returns their partial sums. Lanes outside the mask hold 0, and
// fma(0, 0, p) is p.
__m512 add_square(const float* residual, const float* hidden, float* out, __mmask16 mask, __m512 sum) {
  const __m512 r = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, residual), _mm512_maskz_loadu_ps(mask, hidden));
  _mm512_mask_storeu_ps(out, mask, r);
  return _mm512_fmadd_ps(r, r, sum);
}

void normalize_row(const AddRmsNormQuantParams& p, int64_t row) {
  const int64_t token = row % p.tokens;
  const float* hidden = p.hidden + row * p.features;
  const float* residual = p.residual + (p.residual_is_shared ? token : row) * p.features;
  float* out = p.residual_out + row * p.features;
  int8_t* y = p.y + row * p.features;

  __m512 low = _mm512_setzero_ps();
  __m512 high = _mm512_setzero_ps();
  int32_t i = 0;
  for (; i + 32 <= p.features; i += 32) {
    low = add_square(residual + i, hidden + i, out + i, 0xffff, low);
    high = add_square(residual + i + 16, hidden + i + 16, out + i + 16, 0xffff, high);
  }
  if (i < p.features) low = add_square(residual + i, hidden + i, out + i, lanes(p.features - i), low);
  if (i + 16 < p.features) {
    high = add_square(residual + i + 16, hidden + i + 16, out + i + 16, lanes(p.features - i - 16), high);
  }

  const __m512 k = _mm512_set1_ps(inverse_root(tree_sum(low, high), static_cast<float>(p.features), p.epsilon));
  const __m512 inv_scale = _mm512_set1_ps(p.inv_scale_tok[token]);
  const float* gain = p.gain;
  const auto scale = [&](int32_t at, __mmask16 mask) VIMTRT_ALWAYS_INLINE {
    const __m512 r = _mm512_maskz_loadu_ps(mask, out + at);
    const __m512 v =
        _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(r, k), _mm512_maskz_loadu_ps(mask, gain + at)), inv_scale);
    store_quantized(y + at, mask, v);
  };
  for (i = 0; i + 16 <= p.features; i += 16) scale(i, 0xffff);
  if (i < p.features) scale(i, lanes(p.features - i));
}

void run(const AddRmsNormQuantParams& p, const void*, void*, int threads) { run_rows<normalize_row>(p, threads); }

}  // namespace

const CpuKernels<AddRmsNormQuantParams> kAddRmsNormQuantAvx512 = {no_packed_bytes, no_pack, no_scratch_bytes, run};

}  // namespace vimtrt
