// What the norms share with AVX2: the contract's 32 partial sums are the lanes of four registers. Internal
// linkage, as in threads.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace vimtrt {
namespace {

__m256i lanes(int32_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// p[j] += p[j + s] for s = 16, 8, 4, 2, 1; p[0].
float tree_sum(const __m256 sums[4]) {
  const __m256 p8 = _mm256_add_ps(_mm256_add_ps(sums[0], sums[2]), _mm256_add_ps(sums[1], sums[3]));
  const __m128 p4 = _mm_add_ps(_mm256_castps256_ps128(p8), _mm256_extractf128_ps(p8, 1));
  const __m128 p2 = _mm_add_ps(p4, _mm_movehl_ps(p4, p4));
  return _mm_cvtss_f32(_mm_add_ss(p2, _mm_movehdup_ps(p2)));
}

// 1 / sqrt(sum / features + epsilon)
float inverse_root(float sum, float features, float epsilon) {
  const __m128 mean = _mm_add_ss(_mm_div_ss(_mm_set_ss(sum), _mm_set_ss(features)), _mm_set_ss(epsilon));
  return _mm_cvtss_f32(_mm_div_ss(_mm_set_ss(1.0f), _mm_sqrt_ss(mean)));
}

// sat8(rne(v)), eight int8 in the low half.
__m128i quantize(__m256 v) {
  v = _mm256_min_ps(_mm256_max_ps(v, _mm256_set1_ps(-128.0f)), _mm256_set1_ps(127.0f));
  const __m256i q = _mm256_cvtps_epi32(v);
  const __m128i q16 = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  return _mm_packs_epi16(q16, q16);
}

void store_quantized(int8_t* y, __m256 v) { _mm_storel_epi64(reinterpret_cast<__m128i*>(y), quantize(v)); }

// The first `count` lanes, fewer than eight.
void store_quantized(int8_t* y, int32_t count, __m256 v) {
  int8_t tail[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(tail), quantize(v));
  std::memcpy(y, tail, static_cast<size_t>(count));
}

}  // namespace
}  // namespace vimtrt
