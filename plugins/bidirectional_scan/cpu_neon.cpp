// BidirectionalScan with NEON, 4 channels in the lanes of a register; the states of a block stay
// in the first-level cache.
#include <arm_neon.h>

#include <cstring>

#include "plugins/bidirectional_scan/cpu_driver.h"
#include "plugins/common/numerics.h"
#include "plugins/common/unroll.h"

namespace vimtrt {
namespace {

// Where x is NaN the lower bound is taken, as the contract's clamp does.
inline float32x4_t clamped(float32x4_t x, float low, float high) {
  return vminnmq_f32(vmaxnmq_f32(x, vdupq_n_f32(low)), vdupq_n_f32(high));
}

// sat8(rne(x)) as floats.
inline float32x4_t quantized(float32x4_t x) { return vrndnq_f32(clamped(x, -128.0f, 127.0f)); }

inline float32x4_t coefficient(int k) { return vreinterpretq_f32_u32(vdupq_n_u32(kExp2CoefficientBits[k])); }

// kBounded: x is known to lie in exp2c's range.
template <bool kBounded>
inline float32x4_t exp2c_lanes(float32x4_t x) {
  if constexpr (!kBounded) x = clamped(x, -kExp2Limit, kExp2Limit);
  const float32x4_t whole = vrndmq_f32(x);
  const float32x4_t f = vsubq_f32(x, whole);
  float32x4_t p = vfmaq_f32(coefficient(4), coefficient(5), f);
  p = vfmaq_f32(coefficient(3), p, f);
  p = vfmaq_f32(coefficient(2), p, f);
  p = vfmaq_f32(coefficient(1), p, f);
  p = vfmaq_f32(coefficient(0), p, f);
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(vcvtq_s32_f32(whole), 23)));
}

struct Neon : PlainScaleBc {
  static constexpr int kLanes = 4;
  using Vector = float32x4_t;
  using Lanes = size_t;
  static Lanes lanes(int64_t left) { return static_cast<size_t>(left < kLanes ? left : kLanes); }
  static Vector load(const float* source) { return vld1q_f32(source); }
  static void store(float* target, Vector v) { vst1q_f32(target, v); }
  static Vector broadcast(float x) { return vdupq_n_f32(x); }
  static Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
  static Vector multiply(Vector a, Vector b) { return vmulq_f32(a, b); }
  // The first `lanes` of 4 bytes; nothing behind them is read.
  static int32x4_t load_bytes(const int8_t* source, Lanes lanes) {
    int8_t bytes[8] = {};
    std::memcpy(bytes, source, lanes);
    return vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(bytes))));
  }
  static Vector load_s8(const int8_t* source, Lanes lanes) { return vcvtq_f32_s32(load_bytes(source, lanes)); }
  static Vector load_delta(const int8_t* source, Lanes lanes) {
    return vcvtq_f32_s32(vaddq_s32(load_bytes(source, lanes), vdupq_n_s32(128)));
  }
  static void store_quantized(int8_t* target, Lanes lanes, Vector v) {
    const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(quantized(v)));
    int8_t bytes[8];
    vst1_s8(bytes, vqmovn_s16(vcombine_s16(words, words)));
    std::memcpy(target, bytes, lanes);
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

    float32x4_t state[N];  // h, or hq as a float
    for (float32x4_t& h : state) h = vdupq_n_f32(0.0f);
    for (int step = 0; step < L; ++step) {
      const int t = d == 0 ? step : L - 1 - step;
      const float32x4_t u = load_s8(u_base + t * E, lanes), delta = load_delta(delta_base + t * E, lanes);
      const float32x4_t g = vmulq_f32(vmulq_f32(delta, u), vld1q_f32(packed + N * kLanes));
      const float32x4_t decay = vdupq_n_f32(decay_tok[t]);
      const float* bf = bcf + static_cast<int64_t>(t) * (2 * N);
      float32x4_t chain[N / 4];
      unroll<N>([&](auto n) VIMTRT_ALWAYS_INLINE {
        const float32x4_t a = exp2c_lanes<kBounded>(vfmaq_f32(decay, delta, vld1q_f32(packed + n * kLanes)));
        const float32x4_t h = vfmaq_f32(vmulq_n_f32(g, bf[n]), a, state[n]);
        state[n] = kStateInt8 ? quantized(h) : h;
        chain[n / 4] = n % 4 == 0 ? vmulq_n_f32(h, bf[N + n]) : vfmaq_n_f32(chain[n / 4], h, bf[N + n]);
      });
      float32x4_t y_sum = vaddq_f32(chain[0], chain[1]);
      if constexpr (N == 16) y_sum = vaddq_f32(y_sum, vaddq_f32(chain[2], chain[3]));
      const float32x4_t y = vmulq_f32(y_sum, vld1q_f32(packed + (N + 1) * kLanes));
      sink(t, vfmaq_f32(y, u, vld1q_f32(packed + (N + 2) * kLanes)));
    }
  }
};

}  // namespace

const CpuKernels<BidirectionalScanParams> kBidirectionalScanNeon = kScanKernels<Neon>;

}  // namespace vimtrt
