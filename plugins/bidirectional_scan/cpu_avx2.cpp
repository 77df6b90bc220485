// BidirectionalScan, 8 channels in the lanes of a ymm register; 16 registers do not hold 16 states, which stay in the
// first-level cache.
#include <immintrin.h>

#include "plugins/bidirectional_scan/cpu_driver.h"
#include "plugins/bidirectional_scan/cpu_ymm.h"
#include "plugins/common/numerics.h"

namespace vimtrt {
namespace {

constexpr int kLanes = kYmmLanes;

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

// bcf[d][t] = Bf[t, 0..N-1], Cf[t, 0..N-1] of one image.
template <int N>
void scale_bc(const BidirectionalScanParams& p, int64_t image, float* bcf) {
  for (int d = 0; d < 2; ++d) {
    for (int t = 0; t < p.tokens; ++t, bcf += 2 * N) {
      const int8_t* bc = p.bc[d] + (image * p.tokens + t) * p.bc_stride;
      const float b_tok = p.b_scale_tok[static_cast<int64_t>(d) * p.tokens + t];
      const float c_tok = p.c_scale_tok[static_cast<int64_t>(d) * p.tokens + t];
      for (int n = 0; n < N; ++n) bcf[n] = (static_cast<float>(bc[n]) * p.b_scale_state[d * N + n]) * b_tok;
      for (int n = 0; n < N; ++n) bcf[N + n] = (static_cast<float>(bc[N + n]) * p.c_scale_state[d * N + n]) * c_tok;
    }
  }
}

// One direction of one block of channels. sink(t, y) is called once per token, in the direction's order.
template <int N, bool kStateInt8, bool kBounded, class Sink>
inline void scan_tokens(const BidirectionalScanParams& p, int d, int64_t image, int first_channel, int lanes,
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

struct Avx2 : YmmVectors {
  using Int16Vectors = YmmVectors;

  template <int N>
  static void scale_bc(const BidirectionalScanParams& p, int64_t image, float* bcf) {
    vimtrt::scale_bc<N>(p, image, bcf);
  }
  template <int N, bool kStateInt8, bool kBounded, class Sink>
  static void scan_tokens(const BidirectionalScanParams& p, int d, int64_t image, int first_channel, Lanes lanes,
                          const float* packed, const float* bcf, const Sink& sink) {
    vimtrt::scan_tokens<N, kStateInt8, kBounded>(p, d, image, first_channel, lanes, packed, bcf, sink);
  }
};

}  // namespace

const CpuKernels<BidirectionalScanParams> kBidirectionalScanAvx2 = kScanKernels<Avx2>;

}  // namespace vimtrt
