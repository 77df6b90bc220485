// BidirectionalScan, 8 channels in the lanes of a ymm register; 16 registers do not hold 16 states, which stay
// in the first-level cache.
#include <immintrin.h>

#include "plugins/bidirectional_scan/cpu_driver.h"
#include "plugins/bidirectional_scan/cpu_int16_ymm.h"
#include "plugins/common/numerics.h"

namespace vimtrt {
namespace {

inline __m256 clamped(__m256 x, float low, float high) {
  return _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(low)), _mm256_set1_ps(high));
}

// sat8(rne(x)) as floats.
inline __m256 quantized(__m256 x) {
  return _mm256_round_ps(clamped(x, -128.0f, 127.0f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

inline __m256 coefficient(int k) {
  return _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(kExp2CoefficientBits[k])));
}

// kBounded: x is known to lie in exp2c's range.
template <bool kBounded>
inline __m256 exp2c_lanes(__m256 x) {
  if constexpr (!kBounded) x = clamped(x, -kExp2Limit, kExp2Limit);
  const __m256 whole = _mm256_round_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  const __m256 f = _mm256_sub_ps(x, whole);
  __m256 p = _mm256_fmadd_ps(coefficient(5), f, coefficient(4));
  p = _mm256_fmadd_ps(p, f, coefficient(3));
  p = _mm256_fmadd_ps(p, f, coefficient(2));
  p = _mm256_fmadd_ps(p, f, coefficient(1));
  p = _mm256_fmadd_ps(p, f, coefficient(0));
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23)));
}

struct Avx2 : PlainScaleBc {
  static constexpr int kLanes = 8;
  using Vector = __m256;
  using Lanes = int;
  using Int16 = YmmRows;
  static Lanes lanes(int64_t left) { return left >= kLanes ? kLanes : static_cast<int>(left); }
  static Vector load(const float* source) { return _mm256_load_ps(source); }
  static void store(float* target, Vector v) { _mm256_store_ps(target, v); }
  static Vector broadcast(float x) { return _mm256_set1_ps(x); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  // The first `lanes` of 8 bytes; nothing behind them is read.
  static __m128i load_bytes(const int8_t* source, Lanes lanes) {
    if (lanes == kLanes) return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(source));
    alignas(8) int8_t bytes[kLanes] = {};
    for (int lane = 0; lane < lanes; ++lane) bytes[lane] = source[lane];
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
  }
  static Vector load_s8(const int8_t* source, Lanes lanes) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_bytes(source, lanes)));
  }
  static Vector load_delta(const int8_t* source, Lanes lanes) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_xor_si128(load_bytes(source, lanes), _mm_set1_epi8(-128))));
  }
  static void store_quantized(int8_t* target, Lanes lanes, Vector v) {
    const __m256i wide = _mm256_cvtps_epi32(quantized(v));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    const __m128i bytes = _mm_packs_epi16(words, words);
    if (lanes == kLanes) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(target), bytes);
      return;
    }
    alignas(8) int8_t buffer[kLanes];
    _mm_storel_epi64(reinterpret_cast<__m128i*>(buffer), bytes);
    for (int lane = 0; lane < lanes; ++lane) target[lane] = buffer[lane];
  }
  static void prefetch(const int8_t*) {}

  template <int N, bool kStateInt8, bool kBounded, class Sink>
  static inline void scan_tokens(const BidirectionalScanParams& p, int d, int64_t image, int first_channel, Lanes lanes,
                                 const float* packed, const float* bcf, const Sink& sink) {
    const int L = p.tokens;
    const int64_t E = p.channels;
    const int8_t* u_base = p.u[d] + image * L * E + first_channel;
    const int8_t* delta_base = p.delta[d] + image * L * E + first_channel;
    const float* decay_tok = p.decay_tok + static_cast<int64_t>(d) * L;
    const float* input_scale = packed + N * kLanes;
    const float* y_scale = packed + (N + 1) * kLanes;
    const float* skip_scale = packed + (N + 2) * kLanes;

    __m256 state[N];  // h, or hq as a float
    for (int n = 0; n < N; ++n) state[n] = _mm256_setzero_ps();
    for (int step = 0; step < L; ++step) {
      const int t = d == 0 ? step : L - 1 - step;
      const __m256 u = load_s8(u_base + t * E, lanes);
      const __m256 delta = load_delta(delta_base + t * E, lanes);
      const __m256 g = _mm256_mul_ps(_mm256_mul_ps(delta, u), _mm256_load_ps(input_scale));
      const __m256 decay = _mm256_set1_ps(decay_tok[t]);
      const float* bf = bcf + static_cast<int64_t>(t) * (2 * N);
      __m256 chain[N / 4];
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        const __m256 a = exp2c_lanes<kBounded>(_mm256_fmadd_ps(delta, _mm256_load_ps(packed + n * kLanes), decay));
        const __m256 b = _mm256_mul_ps(g, _mm256_set1_ps(bf[n]));
        const __m256 h = _mm256_fmadd_ps(a, state[n], b);
        state[n] = kStateInt8 ? quantized(h) : h;
        const __m256 c = _mm256_set1_ps(bf[N + n]);
        chain[n / 4] = n % 4 == 0 ? _mm256_mul_ps(h, c) : _mm256_fmadd_ps(h, c, chain[n / 4]);
      }
      __m256 y_sum = _mm256_add_ps(chain[0], chain[1]);
      if constexpr (N == 16) y_sum = _mm256_add_ps(y_sum, _mm256_add_ps(chain[2], chain[3]));
      sink(t, _mm256_fmadd_ps(u, _mm256_load_ps(skip_scale), _mm256_mul_ps(y_sum, _mm256_load_ps(y_scale))));
    }
  }
};

}  // namespace

const CpuKernels<BidirectionalScanParams> kBidirectionalScanAvx2 = kScanKernels<Avx2>;

}  // namespace vimtrt
