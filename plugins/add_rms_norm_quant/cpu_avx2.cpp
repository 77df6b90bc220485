// AddRMSNormQuant with AVX2: the contract's 32 partial sums are the lanes of four registers.
#include <immintrin.h>

#include <cstring>

#include "plugins/add_rms_norm_quant/cpu.h"
#include "plugins/common/threads.h"

namespace vimtrt {
namespace {

__m256i lanes(int32_t count) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }

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

// p[j] += p[j + s] for s = 16, 8, 4, 2, 1; p[0].
float tree_sum(const __m256 sums[4]) {
  const __m256 p8 = _mm256_add_ps(_mm256_add_ps(sums[0], sums[2]), _mm256_add_ps(sums[1], sums[3]));
  const __m128 p4 = _mm_add_ps(_mm256_castps256_ps128(p8), _mm256_extractf128_ps(p8, 1));
  const __m128 p2 = _mm_add_ps(p4, _mm_movehl_ps(p4, p4));
  return _mm_cvtss_f32(_mm_add_ss(p2, _mm_movehdup_ps(p2)));
}

float inverse_rms(float sum, float features, float epsilon) {
  const __m128 mean = _mm_add_ss(_mm_div_ss(_mm_set_ss(sum), _mm_set_ss(features)), _mm_set_ss(epsilon));
  return _mm_cvtss_f32(_mm_div_ss(_mm_set_ss(1.0f), _mm_sqrt_ss(mean)));
}

// Eight int8 in the low half.
__m128i quantize(__m256 v) {
  v = _mm256_min_ps(_mm256_max_ps(v, _mm256_set1_ps(-128.0f)), _mm256_set1_ps(127.0f));
  const __m256i q = _mm256_cvtps_epi32(v);
  const __m128i q16 = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  return _mm_packs_epi16(q16, q16);
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
    for (int j = 0; j < 4; ++j) sums[j] = add_square(residual + i + 8 * j, hidden + i + 8 * j, out + i + 8 * j, sums[j]);
  }
  for (int j = 0; i < p.features; ++j, i += 8) {
    sums[j] = add_square_tail(residual + i, hidden + i, out + i, lanes(p.features - i), sums[j]);
  }

  const __m256 k = _mm256_set1_ps(inverse_rms(tree_sum(sums), static_cast<float>(p.features), p.epsilon));
  const __m256 inv_scale = _mm256_set1_ps(p.inv_scale_tok[token]);
  for (i = 0; i + 8 <= p.features; i += 8) {
    const __m256 r = _mm256_loadu_ps(out + i);
    const __m256 v = _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(r, k), _mm256_loadu_ps(p.gain + i)), inv_scale);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(y + i), quantize(v));
  }
  if (i < p.features) {
    const __m256i mask = lanes(p.features - i);
    const __m256 r = _mm256_maskload_ps(out + i, mask);
    const __m256 v = _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(r, k), _mm256_maskload_ps(p.gain + i, mask)), inv_scale);
    int8_t tail[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(tail), quantize(v));
    std::memcpy(y + i, tail, static_cast<size_t>(p.features - i));
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

const CpuKernels<AddRmsNormQuantParams> kAddRmsNormQuantAvx2 = {no_packed_bytes, no_pack, no_scratch_bytes, run};

}  // namespace vimtrt
