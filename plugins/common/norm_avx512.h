// What the norms share with AVX-512: the contract's 32 partial sums are the lanes of two registers. Internal linkage,
// as in threads.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "plugins/common/unroll.h"

namespace vimtrt {
namespace {

__mmask16 lanes(int32_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// p[j] += p[j + s] for s = 16, 8, 4, 2, 1; p[0].
float tree_sum(__m512 low, __m512 high) {
  const __m512 p16 = _mm512_add_ps(low, high);
  const __m256 p8 = _mm256_add_ps(_mm512_castps512_ps256(p16), _mm512_extractf32x8_ps(p16, 1));
  const __m128 p4 = _mm_add_ps(_mm256_castps256_ps128(p8), _mm256_extractf128_ps(p8, 1));
  const __m128 p2 = _mm_add_ps(p4, _mm_movehl_ps(p4, p4));
  return _mm_cvtss_f32(_mm_add_ss(p2, _mm_movehdup_ps(p2)));
}

// 1 / sqrt(sum / features + epsilon)
float inverse_root(float sum, float features, float epsilon) {
  const __m128 mean = _mm_add_ss(_mm_div_ss(_mm_set_ss(sum), _mm_set_ss(features)), _mm_set_ss(epsilon));
  return _mm_cvtss_f32(_mm_div_ss(_mm_set_ss(1.0f), _mm_sqrt_ss(mean)));
}

// sat8(rne(v)) of the lanes of the mask.
VIMTRT_ALWAYS_INLINE inline void store_quantized(int8_t* y, __mmask16 mask, __m512 v) {
  v = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-128.0f)), _mm512_set1_ps(127.0f));
  const __m128i q = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v));
  if (mask == 0xffff) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(y), q);
  } else {
    _mm_mask_storeu_epi8(y, mask, q);
  }
}

}  // namespace
}  // namespace vimtrt
