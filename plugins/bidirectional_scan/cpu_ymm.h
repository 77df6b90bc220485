// Registers of eight states (cpu_scan.h), for AVX2 and for the eight states of AVX-512. Internal linkage, as in
// threads.h.
#pragma once

#include <immintrin.h>

#include "plugins/bidirectional_scan/decay.h"
#include "plugins/common/unroll.h"

namespace vimtrt {
namespace {

struct YmmRows {
  using Row = __m256;
  static constexpr int kWidth = 8;

  static Row zero() { return _mm256_setzero_ps(); }
  static Row load(const float* source) { return _mm256_loadu_ps(source); }
  static Row load_s8(const int8_t* source) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(source))));
  }
  static Row broadcast(const float* source) { return _mm256_broadcast_ss(source); }
  static void store(float* target, Row row) { _mm256_store_ps(target, row); }
  static Row multiply(Row a, Row b) { return _mm256_mul_ps(a, b); }
  static Row fma(Row a, Row b, Row c) { return _mm256_fmadd_ps(a, b, c); }
  static Row held(Row a) { return _mm256_max_ps(a, _mm256_set1_ps(kLeastPower)); }  // of NaN the second operand
  static Row quantized(Row a) {
    const __m256 limited = _mm256_min_ps(_mm256_max_ps(a, _mm256_set1_ps(-128.0f)), _mm256_set1_ps(127.0f));
    return _mm256_round_ps(limited, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
};

// The sums over states of eight channels from kFirst on, in order: update(channel, part) gives their states.
template <int N, int kFirst, class Update>
VIMTRT_ALWAYS_INLINE inline __m256 ymm_sums(const Update& update, const float* c) {
  const auto c4 = [&](int n)
                      VIMTRT_ALWAYS_INLINE { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(c + n)); };
  // The four chains of two channels, four channels apart.
  const auto chains = [&](auto i) VIMTRT_ALWAYS_INLINE {
    constexpr int kLow = kFirst + i, kHigh = kLow + 4;
    __m256 sum = _mm256_setzero_ps();
    unroll<N / 8>([&](auto part) VIMTRT_ALWAYS_INLINE {
      const __m256 low = update(Index<kLow>(), part), high = update(Index<kHigh>(), part);
      const __m256 product = _mm256_permute2f128_ps(low, high, 0x20);
      sum = part == 0 ? _mm256_mul_ps(product, c4(0)) : _mm256_fmadd_ps(product, c4(8 * part), sum);
      sum = _mm256_fmadd_ps(_mm256_permute2f128_ps(low, high, 0x31), c4(8 * part + 4), sum);
    });
    return sum;
  };
  const auto halves = [](__m256 x, __m256 y) VIMTRT_ALWAYS_INLINE {
    return _mm256_add_ps(_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y));
  };
  const __m256 first = chains(Index<0>()), second = chains(Index<1>());
  const __m256d low = _mm256_castps_pd(halves(first, second));
  const __m256 third = chains(Index<2>()), fourth = chains(Index<3>());
  const __m256d high = _mm256_castps_pd(halves(third, fourth));
  return _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(low, high)),
                       _mm256_castpd_ps(_mm256_unpackhi_pd(low, high)));
}

}  // namespace
}  // namespace vimtrt
