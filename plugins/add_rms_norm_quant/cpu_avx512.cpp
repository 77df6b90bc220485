// AddRMSNormQuant with AVX-512: the contract's 32 partial sums are the lanes of two registers.
#include <immintrin.h>

#include "plugins/add_rms_norm_quant/cpu.h"
#include "plugins/common/threads.h"

namespace vimtrt {
namespace {

__mmask16 lanes(int32_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1); }

// Adds 16 features, stores the sum and returns their partial sums. Lanes outside the mask hold 0, and fma(0, 0, p) is p.
__m512 add_square(const float* residual, const float* hidden, float* out, __mmask16 mask, __m512 sum) {
  const __m512 r = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, residual), _mm512_maskz_loadu_ps(mask, hidden));
  _mm512_mask_storeu_ps(out, mask, r);
  return _mm512_fmadd_ps(r, r, sum);
}

// p[j] += p[j + s] for s = 16, 8, 4, 2, 1; p[0].
float tree_sum(__m512 low, __m512 high) {
  const __m512 p16 = _mm512_add_ps(low, high);
  const __m256 p8 = _mm256_add_ps(_mm512_castps512_ps256(p16), _mm512_extractf32x8_ps(p16, 1));
  const __m128 p4 = _mm_add_ps(_mm256_castps256_ps128(p8), _mm256_extractf128_ps(p8, 1));
  const __m128 p2 = _mm_add_ps(p4, _mm_movehl_ps(p4, p4));
  return _mm_cvtss_f32(_mm_add_ss(p2, _mm_movehdup_ps(p2)));
}

float inverse_rms(float sum, float features, float epsilon) {
  const __m128 mean = _mm_add_ss(_mm_div_ss(_mm_set_ss(sum), _mm_set_ss(features)), _mm_set_ss(epsilon));
  return _mm_cvtss_f32(_mm_div_ss(_mm_set_ss(1.0f), _mm_sqrt_ss(mean)));
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

  const __m512 k = _mm512_set1_ps(inverse_rms(tree_sum(low, high), static_cast<float>(p.features), p.epsilon));
  const __m512 inv_scale = _mm512_set1_ps(p.inv_scale_tok[token]);
  for (i = 0; i < p.features; i += 16) {
    const __mmask16 mask = lanes(p.features - i);
    const __m512 r = _mm512_maskz_loadu_ps(mask, out + i);
    __m512 v = _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(r, k), _mm512_maskz_loadu_ps(mask, p.gain + i)), inv_scale);
    v = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-128.0f)), _mm512_set1_ps(127.0f));
    const __m128i q = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v));
    if (mask == 0xffff) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(y + i), q);
    } else {
      _mm_mask_storeu_epi8(y + i, mask, q);
    }
  }
}

void run(const AddRmsNormQuantParams& p, const void*, void*, int threads) {
  run_workers(threads, RangeCut(p.rows, kPieceRows), [&](int, auto& pieces) {
    for (WorkRange rows; pieces.next(rows);) {
      for (int64_t row = rows.begin; row < rows.end; ++row) normalize_row(p, row);
    }
  });
}

}  // namespace

const CpuKernels<AddRmsNormQuantParams> kAddRmsNormQuantAvx512 = {no_packed_bytes, no_pack, no_scratch_bytes, run};

}  // namespace vimtrt
