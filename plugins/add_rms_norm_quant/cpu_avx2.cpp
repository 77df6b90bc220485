// AddRMSNormQuant with AVX2.
#include "plugins/add_rms_norm_quant/cpu.h"
#include "plugins/common/norm.h"
#include "plugins/common/norm_avx2.h"

namespace vimtrt {
namespace {

__m256 add_square(const float* residual, const float* hidden, float* out, __m256 sum) {
  const __m256 r = _mm256_add_ps(_mm256_loadu_ps(residual), _mm256_loadu_ps(hidden));
  _mm256_storeu_ps(out, r);
  return _mm256_fmadd_ps(r, r, sum);
}

// Lanes outside the mask hold 0, and fma(0, 0, p) is p.
__m256 add_square_tail(const float* residual, const float* hidden, float* out, __m256i mask, __m256 sum) {
  const __m256 r = _mm256_add_ps(_mm256_maskload_ps(residual, mask), _mm256_maskload_ps(hidden, mask));
  _mm256_maskstore_ps(out, mask, r);
  return _mm256_fmadd_ps(r, r, sum);
}

void normalize_row(const AddRmsNormQuantParams& p, int64_t row) {
  const int64_t token = row % p.tokens;
  const float* hidden = p.hidden + row * p.features;
  const float* residual = p.residual + (p.residual_is_shared ? token : row) * p.features;
  float* out = p.residual_out + row * p.features;
  int8_t* y = p.y + row * p.features;

  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  int32_t i = 0;
  for (; i + 32 <= p.features; i += 32) {
    for (int j = 0; j < 4; ++j)
      sums[j] = add_square(residual + i + 8 * j, hidden + i + 8 * j, out + i + 8 * j, sums[j]);
  }
  for (int j = 0; i < p.features; ++j, i += 8) {
    sums[j] = add_square_tail(residual + i, hidden + i, out + i, lanes(p.features - i), sums[j]);
  }

  const __m256 k = _mm256_set1_ps(inverse_root(tree_sum(sums), static_cast<float>(p.features), p.epsilon));
  const __m256 inv_scale = _mm256_set1_ps(p.inv_scale_tok[token]);
  for (i = 0; i + 8 <= p.features; i += 8) {
    const __m256 r = _mm256_loadu_ps(out + i);
    const __m256 v = _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(r, k), _mm256_loadu_ps(p.gain + i)), inv_scale);
    store_quantized(y + i, v);
  }
  if (i < p.features) {
    const __m256i mask = lanes(p.features - i);
    const __m256 r = _mm256_maskload_ps(out + i, mask);
    const __m256 v = _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(r, k), _mm256_maskload_ps(p.gain + i, mask)), inv_scale);
    store_quantized(y + i, p.features - i, v);
  }
}

void run(const AddRmsNormQuantParams& p, const void*, void*, int threads) { run_rows<normalize_row>(p, threads); }

}  // namespace

const CpuKernels<AddRmsNormQuantParams> kAddRmsNormQuantAvx2 = {no_packed_bytes, no_pack, no_scratch_bytes, run};

}  // namespace vimtrt
