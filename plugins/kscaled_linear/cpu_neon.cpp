// KScaledLinear with NEON and its dot products (ARMv8.2): 4 rows by 16 outputs in 16 accumulators; sdot is signed by
// signed and exact.
#include <arm_neon.h>

#include <cstring>

#include "plugins/common/threads.h"
#include "plugins/common/unroll.h"
#include "plugins/kscaled_linear/cpu.h"

namespace vimtrt {
namespace {

constexpr int kRows = 4;
constexpr int kOutputs = 16;
// Rows between two changes of the block of outputs: their x stays in the second-level cache while every
// block passes over it.
constexpr int64_t kPanelRows = 24 * kRows;

struct Packed {
  int64_t quads;         // C / 4, rounded up
  int64_t blocks;        // O / 16, rounded up
  const int8_t* weight;  // [blocks, quads, 16, 4]
  const float* channel_scale;
  const float* bias;
};

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

Packed layout(const KScaledLinearParams& p, const void* memory) {
  Packed packed;
  packed.quads = round_up(p.in_features, 4) / 4;
  packed.blocks = round_up(p.out_features, kOutputs) / kOutputs;
  packed.weight = static_cast<const int8_t*>(memory);
  packed.channel_scale = reinterpret_cast<const float*>(packed.weight + packed.blocks * packed.quads * kOutputs * 4);
  packed.bias = packed.channel_scale + packed.blocks * kOutputs;
  return packed;
}

size_t packed_bytes(const KScaledLinearParams& p) {
  const Packed packed = layout(p, nullptr);
  return static_cast<size_t>(packed.blocks * kOutputs * (packed.quads * 4 + 2 * 4));
}

void pack(const KScaledLinearParams& p, void* memory) {
  std::memset(memory, 0, packed_bytes(p));
  const Packed packed = layout(p, memory);
  for (int64_t o = 0; o < p.out_features; ++o) {
    const int8_t* source = p.weight + o * p.in_features;
    int8_t* target = static_cast<int8_t*>(memory) + (o / kOutputs * packed.quads * kOutputs + o % kOutputs) * 4;
    for (int64_t c = 0; c < p.in_features; ++c) target[c / 4 * kOutputs * 4 + c % 4] = source[c];
  }
  std::memcpy(const_cast<float*>(packed.channel_scale), p.channel_scale,
              static_cast<size_t>(p.out_features) * sizeof(float));
  std::memcpy(const_cast<float*>(packed.bias), p.bias, static_cast<size_t>(p.out_features) * sizeof(float));
}

// One quad of columns: 4 bytes of each row, at lane kLane of x[r].
template <int kLane, int R>
VIMTRT_ALWAYS_INLINE inline void multiply_quad(const int8x16_t (&x)[R], const int8_t* weight, int32x4_t (&acc)[R][4]) {
  unroll<4>([&](auto v) VIMTRT_ALWAYS_INLINE {
    const int8x16_t w = vld1q_s8(weight + 16 * v);
    unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE { acc[r][v] = vdotq_laneq_s32(acc[r][v], w, x[r], kLane); });
  });
}

// R rows from `row` by the block's 16 outputs; `outputs` of them exist.
template <int R>
void run_block(const KScaledLinearParams& p, const Packed& packed, int64_t row, int64_t block, int64_t outputs) {
  const int8_t* weight = packed.weight + block * packed.quads * kOutputs * 4;
  const int8_t* x = p.x + row * p.x_stride;
  int32x4_t acc[R][4];
  unroll<R>([&](auto r)
                VIMTRT_ALWAYS_INLINE { unroll<4>([&](auto v) VIMTRT_ALWAYS_INLINE { acc[r][v] = vdupq_n_s32(0); }); });
  int64_t c = 0;
  for (; c + 16 <= p.in_features; c += 16, weight += 4 * kOutputs * 4) {
    int8x16_t columns[R];
    unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE { columns[r] = vld1q_s8(x + r * p.x_stride + c); });
    multiply_quad<0>(columns, weight, acc);
    multiply_quad<1>(columns, weight + kOutputs * 4, acc);
    multiply_quad<2>(columns, weight + 2 * kOutputs * 4, acc);
    multiply_quad<3>(columns, weight + 3 * kOutputs * 4, acc);
  }
  for (; c < p.in_features; c += 4, weight += kOutputs * 4) {  // x may end where the buffer ends
    const size_t count = static_cast<size_t>(p.in_features - c < 4 ? p.in_features - c : 4);
    int8x16_t columns[R];
    unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE {
      int8_t bytes[16] = {};
      std::memcpy(bytes, x + r * p.x_stride + c, count);
      columns[r] = vld1q_s8(bytes);
    });
    multiply_quad<0>(columns, weight, acc);
  }

  const int64_t first_output = block * kOutputs;
  int64_t token = row % p.tokens;
  unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE {
    const float token_scale = p.token_scale[token], out_scale = p.out_token_scale[token];
    if (++token == p.tokens) token = 0;
    float32x4_t value[4];
    unroll<4>([&](auto v) VIMTRT_ALWAYS_INLINE {
      const float32x4_t a = vld1q_f32(packed.channel_scale + first_output + 4 * v),
                        b = vld1q_f32(packed.bias + first_output + 4 * v);
      value[v] = vmulq_n_f32(vfmaq_f32(b, vmulq_n_f32(vcvtq_f32_s32(acc[r][v]), token_scale), a), out_scale);
    });
    const int64_t at = (row + r) * p.out_features + first_output;
    if (p.y_float != nullptr) {
      float tile[kOutputs];
      float* target = outputs == kOutputs ? p.y_float + at : tile;
      unroll<4>([&](auto v) VIMTRT_ALWAYS_INLINE { vst1q_f32(target + 4 * v, value[v]); });
      if (target == tile) std::memcpy(p.y_float + at, tile, static_cast<size_t>(outputs) * sizeof(float));
      return;
    }
    // The conversion and both narrowings saturate; the maximum is for NaN, which would convert to 0.
    int32x4_t q[4];
    unroll<4>([&](auto v) VIMTRT_ALWAYS_INLINE { q[v] = vcvtnq_s32_f32(vmaxnmq_f32(value[v], vdupq_n_f32(-128.0f))); });
    const int16x8_t low = vcombine_s16(vqmovn_s32(q[0]), vqmovn_s32(q[1])),
                    high = vcombine_s16(vqmovn_s32(q[2]), vqmovn_s32(q[3]));
    int8_t tile[kOutputs];
    int8_t* target = outputs == kOutputs ? p.y_int8 + at : tile;
    vst1q_s8(target, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
    if (p.table != nullptr) {
      for (int64_t o = 0; o < outputs; ++o) {
        const int32_t id = p.table_id[first_output + o];
        if (id >= 0) target[o] = p.table[static_cast<int64_t>(id) * 256 + 128 + target[o]];
      }
    }
    if (target == tile) std::memcpy(p.y_int8 + at, tile, static_cast<size_t>(outputs));
  });
}

void run_rows(const KScaledLinearParams& p, const Packed& packed, WorkRange rows, int64_t block, int64_t outputs) {
  int64_t row = rows.begin;
  for (; row + kRows <= rows.end; row += kRows) run_block<kRows>(p, packed, row, block, outputs);
  switch (rows.end - row) {
    case 3:
      return run_block<3>(p, packed, row, block, outputs);
    case 2:
      return run_block<2>(p, packed, row, block, outputs);
    case 1:
      return run_block<1>(p, packed, row, block, outputs);
    default:
      return;
  }
}

void run(const KScaledLinearParams& p, const void* memory, void*, int threads) {
  const Packed packed = layout(p, memory);
  run_workers(threads, TileCut(p.rows, kRows, kPanelRows, p.out_features, kOutputs), [&](int, auto& pieces) {
    for (WorkTile tile; pieces.next(tile);) {
      run_rows(p, packed, tile.rows, tile.columns.begin / kOutputs, tile.columns.end - tile.columns.begin);
    }
  });
}

}  // namespace

const CpuKernels<KScaledLinearParams> kKScaledLinearNeon = {packed_bytes, pack, no_scratch_bytes, run};

}  // namespace vimtrt
