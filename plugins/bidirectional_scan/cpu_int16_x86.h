// Rows of the int16 state (cpu_int16.h) in ymm registers for N = 16, in xmm registers for N = 8, and the sums of eight
// channels. With AVX2 alone, and with AVX-512. Internal linkage, as in threads.h.
#pragma once

#include <immintrin.h>

#include "plugins/bidirectional_scan/int16.h"
#include "plugins/common/unroll.h"

namespace vimtrt {
namespace {

template <int N>
struct RowOf {
  using Type = __m256i;
};
template <>
struct RowOf<8> {
  using Type = __m128i;
};

// rne(x) within 32767 of zero, -32767 for NaN: the second operand of vmaxps.
inline __m256i int16_lanes(__m256 x) {
  return _mm256_cvtps_epi32(
      _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-32767.0f)), _mm256_set1_ps(32767.0f)));
}

// Eight int32 that fit 16 bits.
inline __m128i narrowed(__m256i x) {
  return _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}

struct X86Rows {
  template <int N>
  using Row = typename RowOf<N>::Type;

  template <int N>
  static Row<N> zero() {
    if constexpr (N == 16) {
      return _mm256_setzero_si256();
    } else {
      return _mm_setzero_si128();
    }
  }
  template <int N>
  static Row<N> load(const void* source) {
    return *static_cast<const Row<N>*>(source);
  }
  static void store(void* target, __m256i row) { *static_cast<__m256i*>(target) = row; }
  static void store(void* target, __m128i row) { *static_cast<__m128i*>(target) = row; }
  template <int N>
  static Row<N> broadcast(uint32_t twice) {
    if constexpr (N == 16) {
      return _mm256_set1_epi32(static_cast<int>(twice));
    } else {
      return _mm_set1_epi32(static_cast<int>(twice));
    }
  }
  static __m256i multiply(__m256i x, __m256i y) { return _mm256_mulhrs_epi16(x, y); }
  static __m128i multiply(__m128i x, __m128i y) { return _mm_mulhrs_epi16(x, y); }
  static __m256i subtract(__m256i x, __m256i y) { return _mm256_subs_epi16(x, y); }
  static __m128i subtract(__m128i x, __m128i y) { return _mm_subs_epi16(x, y); }
  static __m256i times_sixteen(__m256i x) {
    for (int i = 0; i < 4; ++i) x = _mm256_adds_epi16(x, x);
    return x;
  }
  static __m128i times_sixteen(__m128i x) {
    for (int i = 0; i < 4; ++i) x = _mm_adds_epi16(x, x);
    return x;
  }
  static __m256i dot(__m256i h, __m256i c) { return _mm256_madd_epi16(h, c); }
  static __m128i dot(__m128i h, __m128i c) { return _mm_madd_epi16(h, c); }

  template <int N>
  static Row<N> scaled(const int8_t* source, const float* scales) {
    const auto half = [&](int first) VIMTRT_ALWAYS_INLINE {
      const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(source + first)));
      return narrowed(int16_lanes(_mm256_mul_ps(_mm256_cvtepi32_ps(wide), _mm256_loadu_ps(scales + first))));
    };
    if constexpr (N == 16) {
      return _mm256_inserti128_si256(_mm256_castsi128_si256(half(0)), half(8), 1);
    } else {
      return half(0);
    }
  }

  template <int N>
  static void powers(const float* base, bool is_low, int16_t* target) {
    const __m256 one = _mm256_set1_ps(kInt16One), largest = _mm256_set1_ps(is_low ? kInt16One : 32767.0f);
    for (int first = 0; first < N; first += 8) {
      const __m256 power = _mm256_load_ps(base + first), square = _mm256_mul_ps(power, power);
      __m256 even = _mm256_set1_ps(1.0f), odd = power;
      for (int k = 0; k < kInt16Powers; k += 2) {
        const auto row = [&](__m256 x) VIMTRT_ALWAYS_INLINE {
          const __m256i rounded = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_mul_ps(x, one), largest));
          return narrowed(is_low ? _mm256_sub_epi32(_mm256_setzero_si256(), rounded) : rounded);
        };
        _mm_store_si128(reinterpret_cast<__m128i*>(target + k * N + first), row(even));
        _mm_store_si128(reinterpret_cast<__m128i*>(target + (k + 1) * N + first), row(odd));
        even = _mm256_mul_ps(even, square);
        odd = _mm256_mul_ps(odd, square);
      }
    }
  }

  // Sums of the channels first .. first + 7: dot(lane) gives a channel's pairs of products.
  template <int N, int kFirst, class Dot>
  VIMTRT_ALWAYS_INLINE static __m256i sums_of_eight(const Dot& dot) {
    if constexpr (N == 16) {
      const auto four = [&](auto first) VIMTRT_ALWAYS_INLINE {
        const __m256i low = _mm256_hadd_epi32(dot(Index<kFirst + first>()), dot(Index<kFirst + first + 1>()));
        const __m256i high = _mm256_hadd_epi32(dot(Index<kFirst + first + 2>()), dot(Index<kFirst + first + 3>()));
        return _mm256_hadd_epi32(low, high);
      };
      const __m256i low = four(Index<0>()), high = four(Index<4>());
      return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));
    } else {
      const auto four = [&](auto first) VIMTRT_ALWAYS_INLINE {
        const __m128i low = _mm_hadd_epi32(dot(Index<kFirst + first>()), dot(Index<kFirst + first + 1>()));
        const __m128i high = _mm_hadd_epi32(dot(Index<kFirst + first + 2>()), dot(Index<kFirst + first + 3>()));
        return _mm_hadd_epi32(low, high);
      };
      return _mm256_inserti128_si256(_mm256_castsi128_si256(four(Index<0>())), four(Index<4>()), 1);
    }
  }
};

}  // namespace
}  // namespace vimtrt
