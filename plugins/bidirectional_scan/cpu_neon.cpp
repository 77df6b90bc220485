// BidirectionalScan with NEON: four states in a register, four channels in a block.
#include <arm_neon.h>

#include <cstring>

#include "plugins/bidirectional_scan/cpu_driver.h"

namespace vimtrt {
namespace {

struct NeonRows {
  using Row = float32x4_t;
  static constexpr int kWidth = 4;

  static Row zero() { return vdupq_n_f32(0.0f); }
  static Row load(const float* source) { return vld1q_f32(source); }
  static Row load_s8(const int8_t* source) {
    int8_t bytes[8] = {};
    std::memcpy(bytes, source, kWidth);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8(bytes)))));
  }
  static Row broadcast(const float* source) { return vld1q_dup_f32(source); }
  static void store(float* target, Row row) { vst1q_f32(target, row); }
  static Row multiply(Row a, Row b) { return vmulq_f32(a, b); }
  static Row fma(Row a, Row b, Row c) { return vfmaq_f32(c, a, b); }
  static Row held(Row a) { return vmaxnmq_f32(a, vdupq_n_f32(kLeastPower)); }  // of NaN the number
  // Where it is NaN the lower bound is taken, as the contract's clamp does.
  static Row quantized(Row a) {
    return vrndnq_f32(vminnmq_f32(vmaxnmq_f32(a, vdupq_n_f32(-128.0f)), vdupq_n_f32(127.0f)));
  }
};

struct Neon {
  static constexpr int kLanes = 4;
  using Vector = float32x4_t;
  using Lanes = size_t;
  template <int N>
  using Rows = NeonRows;

  static Lanes lanes(int64_t left) { return static_cast<size_t>(left < kLanes ? left : kLanes); }
  static Vector load(const float* source) { return vld1q_f32(source); }
  static void store(float* target, Vector v) { vst1q_f32(target, v); }
  static Vector broadcast(float x) { return vdupq_n_f32(x); }
  static Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
  static Vector multiply(Vector a, Vector b) { return vmulq_f32(a, b); }
  static Vector fma(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }
  // The first `lanes` of 4 bytes; nothing behind them is read.
  static int8x8_t load_bytes(const int8_t* source, Lanes lanes) {
    int8_t bytes[8] = {};
    std::memcpy(bytes, source, lanes);
    return vld1_s8(bytes);
  }
  static Vector as_floats(int8x8_t bytes) { return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes)))); }
  static uint8x8_t unsigned_bytes(int8x8_t bytes) { return veor_u8(vreinterpret_u8_s8(bytes), vdup_n_u8(128)); }
  static Vector unsigned_as_floats(uint8x8_t bytes) { return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes)))); }
  static void store_halves(uint8x8_t bytes, uint8_t* high, uint8_t* low) {
    const uint32_t highs = vget_lane_u32(vreinterpret_u32_u8(vand_u8(bytes, vdup_n_u8(0xf0))), 0);
    const uint32_t lows = vget_lane_u32(vreinterpret_u32_u8(vshl_n_u8(vand_u8(bytes, vdup_n_u8(15)), 3)), 0);
    std::memcpy(high, &highs, sizeof highs);
    std::memcpy(low, &lows, sizeof lows);
  }
  static void store_quantized(int8_t* target, Lanes lanes, Vector v) {
    const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(NeonRows::quantized(v)));
    int8_t bytes[8];
    vst1_s8(bytes, vqmovn_s16(vcombine_s16(words, words)));
    std::memcpy(target, bytes, lanes);
  }
  static void prefetch(const int8_t*) {}

  template <int N, class Update>
  VIMTRT_ALWAYS_INLINE static Vector sums(const Update& update, const float* c) {
    const auto chains = [&](auto channel) VIMTRT_ALWAYS_INLINE {
      Vector sum = vmulq_f32(update(channel, Index<0>()), vld1q_f32(c));
      unroll<N / 4, 1>([&](auto part) VIMTRT_ALWAYS_INLINE {
        sum = vfmaq_f32(sum, update(channel, part), vld1q_f32(c + 4 * part));
      });
      return sum;
    };
    // Of two channels: sums of the even and of the odd chains.
    const auto halves = [](Vector x, Vector y)
                            VIMTRT_ALWAYS_INLINE { return vaddq_f32(vzip1q_f32(x, y), vzip2q_f32(x, y)); };
    const Vector first = chains(Index<0>()), low = halves(first, chains(Index<1>()));
    const Vector third = chains(Index<2>()), high = halves(third, chains(Index<3>()));
    return vaddq_f32(vcombine_f32(vget_low_f32(low), vget_low_f32(high)),
                     vcombine_f32(vget_high_f32(low), vget_high_f32(high)));
  }
};

}  // namespace

const CpuKernels<BidirectionalScanParams> kBidirectionalScanNeon = kScanKernels<Neon>;

}  // namespace vimtrt
