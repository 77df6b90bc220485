// AddLayerNormQuant with AVX-512.
#include "plugins/add_layer_norm_quant/cpu.h"
#include "plugins/common/norm.h"
#include "plugins/common/norm_avx512.h"
#include "plugins/common/threads.h"

namespace vimtrt {
namespace {

// Adds 16 features, stores the sums and returns their partial sums. Lanes outside the mask hold 0.
__m512 add(const float* residual, const float* hidden, float* out, __mmask16 mask, __m512 sum) {
  const __m512 r = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, residual), _mm512_maskz_loadu_ps(mask, hidden));
  _mm512_mask_storeu_ps(out, mask, r);
  return _mm512_add_ps(sum, r);
}

// Distances from the mean; 0 outside the mask, and fma(0, 0, p) is p.
__m512 distance(const float* out, __mmask16 mask, __m512 mean) { return _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, out), mean); }

void normalize_row(const AddLayerNormQuantParams& p, int64_t row) {
  const int64_t token = row % p.tokens;
  const float* hidden = p.hidden + row * p.features;
  const float* residual = p.residual + (p.residual_is_shared ? token : row) * p.features;
  float* out = p.residual_out + row * p.features;
  int8_t* y = p.y + row * p.features;
  const float features = static_cast<float>(p.features);

  __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
  for (int32_t i = 0; i < p.features; i += 32) {
    low = add(residual + i, hidden + i, out + i, lanes(p.features - i), low);
    if (i + 16 < p.features) high = add(residual + i + 16, hidden + i + 16, out + i + 16, lanes(p.features - i - 16), high);
  }
  const __m512 mean = _mm512_set1_ps(tree_sum(low, high) / features);
  low = high = _mm512_setzero_ps();
  for (int32_t i = 0; i < p.features; i += 32) {
    const __m512 first = distance(out + i, lanes(p.features - i), mean);
    low = _mm512_fmadd_ps(first, first, low);
    if (i + 16 < p.features) {
      const __m512 second = distance(out + i + 16, lanes(p.features - i - 16), mean);
      high = _mm512_fmadd_ps(second, second, high);
    }
  }
  const __m512 k = _mm512_set1_ps(inverse_root(tree_sum(low, high), features, p.epsilon));
  const __m512 inv_scale = _mm512_set1_ps(p.inv_scale_tok[token]);
  for (int32_t i = 0; i < p.features; i += 16) {
    const __mmask16 mask = lanes(p.features - i);
    const __m512 scaled = _mm512_mul_ps(distance(out + i, mask, mean), k);
    const __m512 v = _mm512_fmadd_ps(scaled, _mm512_maskz_loadu_ps(mask, p.gain + i), _mm512_maskz_loadu_ps(mask, p.shift + i));
    store_quantized(y + i, mask, _mm512_mul_ps(v, inv_scale));
  }
}

void run(const AddLayerNormQuantParams& p, const void*, void*, int threads) {
  run_workers(threads, RangeCut(p.rows, kPieceRows), [&](int, auto& pieces) {
    for (WorkRange rows; pieces.next(rows);) {
      for (int64_t row = rows.begin; row < rows.end; ++row) normalize_row(p, row);
    }
  });
}

}  // namespace

const CpuKernels<AddLayerNormQuantParams> kAddLayerNormQuantAvx512 = {no_packed_bytes, no_pack, no_scratch_bytes, run};

}  // namespace vimtrt
