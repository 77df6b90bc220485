// AddLayerNormQuant with AVX-512.
#include "plugins/add_layer_norm_quant/cpu.h"
#include "plugins/common/norm.h"
#include "plugins/common/norm_avx512.h"

namespace vimtrt {
namespace {

// Adds 16 features, stores the sums and returns their partial sums. Lanes outside the mask hold 0.
VIMTRT_ALWAYS_INLINE inline __m512 add(const float* residual, const float* hidden, float* out, __mmask16 mask,
                                       __m512 sum) {
  const __m512 r = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, residual), _mm512_maskz_loadu_ps(mask, hidden));
  _mm512_mask_storeu_ps(out, mask, r);
  return _mm512_add_ps(sum, r);
}

// Distances from the mean; 0 outside the mask, and fma(0, 0, p) is p.
VIMTRT_ALWAYS_INLINE inline __m512 distance(const float* out, __mmask16 mask, __m512 mean) {
  return _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, out), mean);
}

void normalize_row(const AddLayerNormQuantParams& p, int64_t row) {
  const int64_t token = row % p.tokens;
  const float* hidden = p.hidden + row * p.features;
  const float* residual = p.residual + (p.residual_is_shared ? token : row) * p.features;
  float* out = p.residual_out + row * p.features;
  int8_t* y = p.y + row * p.features;
  const float features = static_cast<float>(p.features);

  // first(i, mask) of 16 features of the first half of the partial sums and second(i, mask) of the second, until no
  // features are left.
  const auto each = [&](const auto& first, const auto& second) VIMTRT_ALWAYS_INLINE {
    int32_t i = 0;
    for (; i + 32 <= p.features; i += 32) {
      first(i, 0xffff);
      second(i + 16, 0xffff);
    }
    if (i < p.features) first(i, lanes(p.features - i));
    if (i + 16 < p.features) second(i + 16, lanes(p.features - i - 16));
  };

  __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
  each([&](int32_t i, __mmask16 mask) VIMTRT_ALWAYS_INLINE { low = add(residual + i, hidden + i, out + i, mask, low); },
       [&](int32_t i, __mmask16 mask)
           VIMTRT_ALWAYS_INLINE { high = add(residual + i, hidden + i, out + i, mask, high); });
  const __m512 mean = _mm512_set1_ps(tree_sum(low, high) / features);
  low = high = _mm512_setzero_ps();
  const auto add_square = [&](int32_t i, __mmask16 mask, __m512& sum) VIMTRT_ALWAYS_INLINE {
    const __m512 d = distance(out + i, mask, mean);
    sum = _mm512_fmadd_ps(d, d, sum);
  };
  each([&](int32_t i, __mmask16 mask) VIMTRT_ALWAYS_INLINE { add_square(i, mask, low); },
       [&](int32_t i, __mmask16 mask) VIMTRT_ALWAYS_INLINE { add_square(i, mask, high); });
  const __m512 k = _mm512_set1_ps(inverse_root(tree_sum(low, high), features, p.epsilon));
  const __m512 inv_scale = _mm512_set1_ps(p.inv_scale_tok[token]);
  const float *gain = p.gain, *shift = p.shift;
  const auto scale = [&](int32_t i, __mmask16 mask) VIMTRT_ALWAYS_INLINE {
    const __m512 scaled = _mm512_mul_ps(distance(out + i, mask, mean), k);
    const __m512 v =
        _mm512_fmadd_ps(scaled, _mm512_maskz_loadu_ps(mask, gain + i), _mm512_maskz_loadu_ps(mask, shift + i));
    store_quantized(y + i, mask, _mm512_mul_ps(v, inv_scale));
  };
  each(scale, scale);
}

void run(const AddLayerNormQuantParams& p, const void*, void*, int threads) { run_rows<normalize_row>(p, threads); }

}  // namespace

const CpuKernels<AddLayerNormQuantParams> kAddLayerNormQuantAvx512 = {no_packed_bytes, no_pack, no_scratch_bytes, run};

}  // namespace vimtrt
