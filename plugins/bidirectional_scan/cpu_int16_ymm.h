// Rows of the int16 state in ymm registers (cpu_int16.h), for AVX2; AVX-512 makes its tables with them. Internal
// linkage, as in threads.h.
#pragma once

#include <immintrin.h>

#include "plugins/bidirectional_scan/cpu_int16.h"
#include "plugins/common/unroll.h"

namespace vimtrt {
namespace {

constexpr int kYmmLanes = 8;

// rne(x) within 32767 of zero, -32767 for NaN: the second operand of vmaxps.
inline __m256i int16_lanes(__m256 x) {
  return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-32767.0f)), _mm256_set1_ps(32767.0f)));
}

// Eight int32 that fit 16 bits.
inline __m128i narrowed(__m256i x) {
  return _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

inline __m256i in_halves(__m128i low, __m128i high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

// The states of one channel in a ymm register for N = 16, of two for N = 8.
struct YmmRows {
  template <int N>
  using Row = __m256i;
  template <int N>
  static constexpr int kChannels = 16 / N;

  template <int N>
  static __m256i zero() {
    return _mm256_setzero_si256();
  }
  template <int N>
  static __m256i twice(const int16_t* states) {
    if constexpr (N == 16) return *reinterpret_cast<const __m256i*>(states);
    return _mm256_broadcastsi128_si256(*reinterpret_cast<const __m128i*>(states));
  }
  template <int N>
  static __m256i rows(const char* tables, const uint16_t* offsets) {
    if constexpr (N == 16) return *reinterpret_cast<const __m256i*>(tables + offsets[0]);
    return in_halves(*reinterpret_cast<const __m128i*>(tables + offsets[0]),
                     *reinterpret_cast<const __m128i*>(tables + offsets[kYmmLanes / 2]));
  }
  template <int N>
  static __m256i numbers(const uint32_t* g) {
    const __m256i low = _mm256_set1_epi32(static_cast<int>(g[0]));
    if constexpr (N == 16) return low;
    return _mm256_blend_epi32(low, _mm256_set1_epi32(static_cast<int>(g[kYmmLanes / 2])), 0xf0);
  }
  static __m256i multiply(__m256i x, __m256i y) { return _mm256_mulhrs_epi16(x, y); }
  static __m256i subtract(__m256i x, __m256i y) { return _mm256_subs_epi16(x, y); }
  static __m256i times_sixteen(__m256i x) {
    for (int i = 0; i < 4; ++i) x = _mm256_adds_epi16(x, x);
    return x;
  }
  static __m256i select(__m256i mask, __m256i x, __m256i y) { return _mm256_blendv_epi8(y, x, mask); }
  static __m256i dot(__m256i h, __m256i c) { return _mm256_madd_epi16(h, c); }

  template <int N, class Dots>
  VIMTRT_ALWAYS_INLINE static __m256 sums(const Dots& dots) {
    const auto four = [&](auto first) VIMTRT_ALWAYS_INLINE {
      const __m256i low = _mm256_hadd_epi32(dots(first), dots(Index<first + 1>()));
      const __m256i high = _mm256_hadd_epi32(dots(Index<first + 2>()), dots(Index<first + 3>()));
      return _mm256_hadd_epi32(low, high);
    };
    const __m256i first = four(Index<0>());
    if constexpr (N == 8) return _mm256_cvtepi32_ps(first);
    const __m256i second = four(Index<4>());
    return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_permute2x128_si256(first, second, 0x20),
                                               _mm256_permute2x128_si256(first, second, 0x31)));
  }

  template <int N>
  static void scaled(const int8_t* source, const float* scales, int16_t* target) {
    for (int first = 0; first < N; first += 8) {
      const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(source + first)));
      const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_loadu_ps(scales + first));
      _mm_store_si128(reinterpret_cast<__m128i*>(target + first), narrowed(int16_lanes(product)));
    }
  }

  template <int N>
  static void powers(const float* base, bool is_low, int16_t* target) {
    const __m256 one = _mm256_set1_ps(is_low ? -kInt16One : kInt16One), least = _mm256_set1_ps(-kInt16One),
                 most = _mm256_set1_ps(32767.0f);
    for (int first = 0; first < N; first += 8) {
      const __m256 power = _mm256_load_ps(base + first), square = _mm256_mul_ps(power, power);
      __m256 even = one, odd = _mm256_mul_ps(one, power);
      for (int k = 0; k < kInt16Powers; k += 2) {
        const auto row = [&](__m256 x) VIMTRT_ALWAYS_INLINE {
          return narrowed(_mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(x, least), most)));
        };
        _mm_store_si128(reinterpret_cast<__m128i*>(target + k * N + first), row(even));
        _mm_store_si128(reinterpret_cast<__m128i*>(target + (k + 1) * N + first), row(odd));
        even = _mm256_mul_ps(even, square);
        odd = _mm256_mul_ps(odd, square);
      }
    }
  }

  template <int N>
  static void drive(__m256 u, __m256 delta, __m256 input_scale, __m256 b_tok, const uint16_t* first_rows,
                    TokenDrive<kYmmLanes>& drive) {
    const __m256 g = _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(delta, u), input_scale), b_tok);
    const __m256 magnitude = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), g);
    const __m256 is_large = _mm256_cmp_ps(magnitude, _mm256_set1_ps(kInt16LargeDrive), _CMP_NLT_UQ);
    drive.is_large = static_cast<uint32_t>(_mm256_movemask_ps(is_large));
    const __m256i whole = int16_lanes(_mm256_blendv_ps(g, _mm256_mul_ps(g, _mm256_set1_ps(kInt16Sixteenth)), is_large));
    const __m256i low_half = _mm256_and_si256(whole, _mm256_set1_epi32(0xffff));
    _mm256_store_si256(reinterpret_cast<__m256i*>(drive.g), _mm256_or_si256(_mm256_slli_epi32(whole, 16), low_half));
    const __m128i dq = narrowed(_mm256_cvtps_epi32(delta));
    const __m128i row_bytes = _mm_set1_epi16(N * sizeof(int16_t));
    const __m128i first = _mm_load_si128(reinterpret_cast<const __m128i*>(first_rows));
    const __m128i high = _mm_mullo_epi16(_mm_srli_epi16(dq, 4), row_bytes);
    const __m128i low =
        _mm_mullo_epi16(_mm_or_si128(_mm_and_si128(dq, _mm_set1_epi16(15)), _mm_set1_epi16(16)), row_bytes);
    _mm_store_si128(reinterpret_cast<__m128i*>(drive.high), _mm_add_epi16(first, high));
    _mm_store_si128(reinterpret_cast<__m128i*>(drive.low), _mm_add_epi16(first, low));
  }
};

}  // namespace
}  // namespace vimtrt
