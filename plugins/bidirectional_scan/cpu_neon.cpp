// BidirectionalScan with NEON, 4 channels in the lanes of a register; the states of a block stay
// in the first-level cache.
#include <arm_neon.h>

#include <cstring>
#include <iterator>

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

constexpr int kNeonLanes = 4;

// Where x is NaN the lower bound is taken.
inline int16x4_t int16_lanes(float32x4_t x) { return vmovn_s32(vcvtnq_s32_f32(clamped(x, -32767.0f, 32767.0f))); }

// The states of one channel in N / 8 registers.
template <int N>
struct NeonRow {
  int16x8_t part[N / 8];
};

struct NeonInt16 {
  static float32x4_t loaded_s8(const int8_t* source) {
    const int32x4_t numbers = {source[0], source[1], source[2], source[3]};
    return vcvtq_f32_s32(numbers);
  }

  template <int N>
  using Row = NeonRow<N>;
  template <int N>
  static constexpr int kChannels = 1;

  template <int N>
  static NeonRow<N> zero() {
    const uint32_t none = 0;
    return numbers<N>(&none);
  }
  template <int N>
  static NeonRow<N> twice(const int16_t* states) {
    NeonRow<N> row;
    for (int i = 0; i < N / 8; ++i) row.part[i] = vld1q_s16(states + 8 * i);
    return row;
  }
  template <int N>
  static NeonRow<N> rows(const char* tables, const uint16_t* offsets) {
    return twice<N>(reinterpret_cast<const int16_t*>(tables + offsets[0]));
  }
  template <int N>
  static NeonRow<N> numbers(const uint32_t* g) {
    NeonRow<N> row;
    for (int i = 0; i < N / 8; ++i) row.part[i] = vreinterpretq_s16_u32(vld1q_dup_u32(g));
    return row;
  }
  template <class Row>
  static Row multiply(Row x, Row y) {
    for (size_t i = 0; i < std::size(x.part); ++i) x.part[i] = vqrdmulhq_s16(x.part[i], y.part[i]);
    return x;
  }
  template <class Row>
  static Row subtract(Row x, Row y) {
    for (size_t i = 0; i < std::size(x.part); ++i) x.part[i] = vqsubq_s16(x.part[i], y.part[i]);
    return x;
  }
  template <class Row>
  static Row times_sixteen(Row x) {
    for (int16x8_t& part : x.part) part = vqshlq_n_s16(part, 4);
    return x;
  }
  template <class Row>
  static Row select(Row mask, Row x, Row y) {
    for (size_t i = 0; i < std::size(x.part); ++i)
      x.part[i] = vbslq_s16(vreinterpretq_u16_s16(mask.part[i]), x.part[i], y.part[i]);
    return x;
  }
  template <class Row>
  static int32x4_t dot(Row h, Row c) {
    int32x4_t sum = vmull_s16(vget_low_s16(h.part[0]), vget_low_s16(c.part[0]));
    sum = vmlal_high_s16(sum, h.part[0], c.part[0]);
    for (size_t i = 1; i < std::size(h.part); ++i) {
      sum = vmlal_s16(sum, vget_low_s16(h.part[i]), vget_low_s16(c.part[i]));
      sum = vmlal_high_s16(sum, h.part[i], c.part[i]);
    }
    return sum;
  }
  template <int N, class Dots>
  VIMTRT_ALWAYS_INLINE static float32x4_t sums(const Dots& dots) {
    const int32x4_t low = vpaddq_s32(dots(Index<0>()), dots(Index<1>()));
    const int32x4_t high = vpaddq_s32(dots(Index<2>()), dots(Index<3>()));
    return vcvtq_f32_s32(vpaddq_s32(low, high));
  }

  template <int N>
  static void scaled(const int8_t* source, const float* scales, int16_t* target) {
    for (int n = 0; n < N; n += 4) {
      const float32x4_t product = vmulq_f32(loaded_s8(source + n), vld1q_f32(scales + n));
      vst1_s16(target + n, int16_lanes(product));
    }
  }

  template <int N>
  static void powers(const float* base, bool is_low, int16_t* target) {
    const float32x4_t largest = vdupq_n_f32(is_low ? kInt16One : 32767.0f);
    for (int n = 0; n < N; n += 4) {
      const float32x4_t power = vld1q_f32(base + n), square = vmulq_f32(power, power);
      float32x4_t even = vdupq_n_f32(1.0f), odd = power;
      for (int k = 0; k < kInt16Powers; k += 2) {
        const auto row = [&](float32x4_t x) VIMTRT_ALWAYS_INLINE {
          const int32x4_t rounded = vcvtnq_s32_f32(vminq_f32(vmulq_n_f32(x, kInt16One), largest));
          return vmovn_s32(is_low ? vnegq_s32(rounded) : rounded);
        };
        vst1_s16(target + k * N + n, row(even));
        vst1_s16(target + (k + 1) * N + n, row(odd));
        even = vmulq_f32(even, square);
        odd = vmulq_f32(odd, square);
      }
    }
  }

  template <int N>
  static void drive(float32x4_t u, float32x4_t delta, float32x4_t input_scale, float32x4_t b_tok,
                    const uint16_t* first_rows, TokenDrive<kNeonLanes>& drive) {
    const float32x4_t g = vmulq_f32(vmulq_f32(vmulq_f32(delta, u), input_scale), b_tok);
    const uint32x4_t is_large = vmvnq_u32(vcltq_f32(vabsq_f32(g), vdupq_n_f32(kInt16LargeDrive)));
    const uint32x4_t bits = {1, 2, 4, 8};
    drive.is_large = vaddvq_u32(vandq_u32(is_large, bits));
    const int16x4_t whole = int16_lanes(vbslq_f32(is_large, vmulq_n_f32(g, kInt16Sixteenth), g));
    vst1q_u32(drive.g, vreinterpretq_u32_s16(vcombine_s16(vzip1_s16(whole, whole), vzip2_s16(whole, whole))));
    const uint16x4_t dq = vmovn_u32(vcvtq_u32_f32(delta)), first = vld1_u16(first_rows);
    constexpr uint16_t kRowBytes = N * sizeof(int16_t);
    vst1_u16(drive.high, vmla_n_u16(first, vshr_n_u16(dq, 4), kRowBytes));
    vst1_u16(drive.low, vmla_n_u16(first, vorr_u16(vand_u16(dq, vdup_n_u16(15)), vdup_n_u16(kInt16Powers)), kRowBytes));
  }
};

struct Neon : PlainScaleBc {
  static constexpr int kLanes = kNeonLanes;
  using Int16 = NeonInt16;
  using Vector = float32x4_t;
  using Lanes = size_t;
  static Lanes lanes(int64_t left) { return static_cast<size_t>(left < kLanes ? left : kLanes); }
  static Vector load(const float* source) { return vld1q_f32(source); }
  static void store(float* target, Vector v) { vst1q_f32(target, v); }
  static Vector broadcast(float x) { return vdupq_n_f32(x); }
  static Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
  static Vector multiply(Vector a, Vector b) { return vmulq_f32(a, b); }
  static Vector fma(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }
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
