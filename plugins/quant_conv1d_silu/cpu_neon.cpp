// QuantConv1dSiLU with NEON, 8 channels at a time: tokens are widened to 16 bits, products summed in 32.
#include <arm_neon.h>

#include <cstring>

#include "plugins/common/threads.h"
#include "plugins/quant_conv1d_silu/cpu.h"

namespace vimtrt {
namespace {

constexpr int kLanes = 8;         // channels of a block
constexpr int kChunkTokens = 64;  // most tokens of a work item
constexpr int kWidth = 4;

struct alignas(64) Direction {
  int16_t weight[kWidth][kLanes];
  float scale[kLanes];
  float bias[kLanes];
  int32_t table_offset[kLanes];  // 256 * table_id
};

struct Block {
  Direction direction[2];
};

int64_t block_count(const QuantConv1dSiluParams& p) { return (static_cast<int64_t>(p.channels) + kLanes - 1) / kLanes; }

size_t packed_bytes(const QuantConv1dSiluParams& p) { return sizeof(Block) * static_cast<size_t>(block_count(p)); }

void pack(const QuantConv1dSiluParams& p, void* packed) {
  for (int64_t block = 0; block < block_count(p); ++block) {
    for (int d = 0; d < 2; ++d) {
      Direction& out = static_cast<Block*>(packed)[block].direction[d];
      out = Direction{};
      for (int lane = 0; lane < kLanes && block * kLanes + lane < p.channels; ++lane) {
        const int64_t source = static_cast<int64_t>(d) * p.channels + block * kLanes + lane;
        for (int j = 0; j < kWidth; ++j) out.weight[j][lane] = p.weight[source * kWidth + j];
        out.scale[lane] = p.channel_scale[source];
        out.bias[lane] = p.bias[source];
        out.table_offset[lane] = p.table_id[source] * 256;
      }
    }
  }
}

int32x4_t quantized(int32x4_t acc, const float* scale, const float* bias) {
  const float32x4_t value = vfmaq_f32(vld1q_f32(bias), vcvtq_f32_s32(acc), vld1q_f32(scale));
  // The maximum is for NaN; conversion and narrowing saturate.
  return vcvtnq_s32_f32(vmaxnmq_f32(value, vdupq_n_f32(-128.0f)));
}

// Tokens [begin, end) of one image, one block of channels and one direction.
void run_direction(const QuantConv1dSiluParams& p, const Direction& w, int d, int64_t image, int64_t first_channel,
                   int64_t begin, int64_t end) {
  const int64_t L = p.tokens, E = p.channels;
  const size_t lanes = static_cast<size_t>(E - first_channel < kLanes ? E - first_channel : kLanes);
  const int8_t* x = p.x + image * L * p.x_stride + first_channel;
  int8_t* u = p.u[d] + image * L * E + first_channel;
  for (int64_t t = begin; t < end; ++t) {
    int32x4_t low = vdupq_n_s32(0), high = vdupq_n_s32(0);
    for (int j = 0; j < kWidth; ++j) {
      const int64_t from = d == 0 ? t - 3 + j : t + 3 - j;
      if (from < 0 || from >= L) continue;  // zeros
      int8_t bytes[kLanes] = {};
      std::memcpy(bytes, x + from * p.x_stride, lanes);  // nothing behind them is read
      const int16x8_t values = vmovl_s8(vld1_s8(bytes)), weight = vld1q_s16(w.weight[j]);
      low = vmlal_s16(low, vget_low_s16(values), vget_low_s16(weight));
      high = vmlal_s16(high, vget_high_s16(values), vget_high_s16(weight));
    }
    const int16x8_t words =
        vcombine_s16(vqmovn_s32(quantized(low, w.scale, w.bias)), vqmovn_s32(quantized(high, w.scale + 4, w.bias + 4)));
    int8_t q[kLanes];
    vst1_s8(q, vqmovn_s16(words));
    for (size_t lane = 0; lane < lanes; ++lane)
      u[t * E + static_cast<int64_t>(lane)] = p.table[w.table_offset[lane] + 128 + q[lane]];
  }
}

void run(const QuantConv1dSiluParams& p, const void* packed, void*, int threads) {
  const int64_t blocks = block_count(p), chunks = (p.tokens + kChunkTokens - 1) / kChunkTokens;
  run_workers(threads, RangeCut(p.batch * chunks * blocks, 1), [&](int, auto& pieces) {
    for (WorkRange range; pieces.next(range);) {
      const int64_t item = range.begin;
      const int64_t block = item % blocks, chunk = item / blocks % chunks, image = item / blocks / chunks;
      const int64_t begin = p.tokens * chunk / chunks, end = p.tokens * (chunk + 1) / chunks;
      for (int d = 0; d < 2; ++d)
        run_direction(p, static_cast<const Block*>(packed)[block].direction[d], d, image, block * kLanes, begin, end);
    }
  });
}

}  // namespace

const CpuKernels<QuantConv1dSiluParams> kQuantConv1dSiluNeon = {packed_bytes, pack, no_scratch_bytes, run};

}  // namespace vimtrt
