// QuantConv1dSiLU, 64 channels at a time: a window of four tokens is one vpdpbusd per 16 channels,
// used by both directions.
#include "plugins/quant_conv1d_silu/cpu.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own intrinsics
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "plugins/common/lookup_avx512.h"
#include "plugins/common/threads.h"

namespace vimtrt {
namespace {

constexpr int kLanes = 64;  // channels of a block
// Most tokens of a work item: its indices stay in the first-level cache until they are looked up.
constexpr int kChunkTokens = 64;

// One direction of one block. Register v, 32-bit lane 4 i + k holds channel 16 i + 4 v + k: the order in which bytes
// interleave, and which the saturating packs undo.
struct alignas(64) Direction {
  int8_t weight[4][64];       // four bytes per channel, the earliest token's first
  int32_t correction[4][16];  // -128 * sum of the weights: tokens are multiplied as x + 128
  float scale[4][16];
  float bias[4][16];
  int32_t table_offset[kLanes];  // 256 * table_id
  BlockTables tables;
};

struct Block {
  Direction direction[2];
};

int64_t block_count(const QuantConv1dSiluParams& p) { return (static_cast<int64_t>(p.channels) + kLanes - 1) / kLanes; }

size_t packed_bytes(const QuantConv1dSiluParams& p) { return sizeof(Block) * block_count(p); }

void pack_direction(const QuantConv1dSiluParams& p, int d, int64_t first_channel, Direction& out) {
  out = Direction{};
  for (int lane = 0; lane < kLanes && first_channel + lane < p.channels; ++lane) {
    const int64_t source = d * static_cast<int64_t>(p.channels) + first_channel + lane;
    const int v = lane / 4 % 4, slot = lane / 16 * 4 + lane % 4;
    int sum = 0;
    for (int j = 0; j < 4; ++j) {
      const int8_t weight = p.weight[source * 4 + j];
      out.weight[v][slot * 4 + (d == 0 ? j : 3 - j)] = weight;
      sum += weight;
    }
    out.correction[v][slot] = -128 * sum;
    out.scale[v][slot] = p.channel_scale[source];
    out.bias[v][slot] = p.bias[source];

    out.table_offset[lane] = p.table_id[source] * 256;
    out.tables.add(lane, p.table_id[source]);
  }
}

void pack(const QuantConv1dSiluParams& p, void* packed) {
  for (int64_t block = 0; block < block_count(p); ++block) {
    for (int d = 0; d < 2; ++d) pack_direction(p, d, block * kLanes, static_cast<Block*>(packed)[block].direction[d]);
  }
}

// Four tokens of 64 channels: register v, 32-bit lane 4 i + k holds the four bytes of channel 16 i + 4 v + k.
struct Window {
  __m512i bytes[4];
};

// Two tokens: bytes of channel pairs.
struct Pair {
  __m512i low, high;
};

inline Pair interleave(__m512i first, __m512i second) {
  return {_mm512_unpacklo_epi8(first, second), _mm512_unpackhi_epi8(first, second)};
}

inline Window interleave(const Pair& first, const Pair& second) {
  return {{_mm512_unpacklo_epi16(first.low, second.low), _mm512_unpackhi_epi16(first.low, second.low),
           _mm512_unpacklo_epi16(first.high, second.high), _mm512_unpackhi_epi16(first.high, second.high)}};
}

// Table indices q + 128 of 64 channels. Only large positive numbers need a clamp: the conversion makes every number
// below int32 the lowest one, and the packs saturate.
inline __m512i indices(const Window& window, const Direction& w) {
  __m512i q[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v) {
    const __m512i acc =
        _mm512_dpbusd_epi32(_mm512_load_si512(w.correction[v]), window.bytes[v], _mm512_load_si512(w.weight[v]));
    const __m512 value =
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), _mm512_load_ps(w.scale[v]), _mm512_load_ps(w.bias[v]));
    q[v] = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_set1_ps(127.0f), value));
  }
  const __m512i bytes = _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
  return _mm512_xor_si512(bytes, _mm512_set1_epi8(-128));
}

// Replaces a block's indices by table entries, byte by byte.
void look_up_scalar(const int8_t* table, const Direction& w, int64_t tokens, int64_t stride, int lanes, int8_t* u) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (int lane = 0; lane < lanes; ++lane) {
      int8_t& byte = u[t * stride + lane];
      byte = table[w.table_offset[lane] + static_cast<uint8_t>(byte)];
    }
  }
}

// Tokens [begin, end) of one image and one block of channels.
void run_item(const QuantConv1dSiluParams& p, const Block& block, int64_t image, int64_t first_channel, int64_t begin,
              int64_t end, bool vbmi) {
  const int64_t L = p.tokens, E = p.channels;
  const int lanes = E - first_channel >= kLanes ? kLanes : static_cast<int>(E - first_channel);
  const __mmask64 mask = ~uint64_t{0} >> (kLanes - lanes);
  const int8_t* x = p.x + image * L * p.x_stride + first_channel;
  int8_t* u[2] = {p.u[0] + image * L * E + first_channel, p.u[1] + image * L * E + first_channel};

  // x + 128; tokens outside the sequence are zeros.
  const auto row = [&](int64_t t) {
    const __m512i bytes = t >= 0 && t < L ? _mm512_maskz_loadu_epi8(mask, x + t * p.x_stride) : _mm512_setzero_si512();
    return _mm512_xor_si512(bytes, _mm512_set1_epi8(-128));
  };
  // The window of tokens t - 3 .. t serves the forward direction at t and the backward direction at t - 3.
  __m512i last = row(begin - 1);
  Pair two_ago = interleave(row(begin - 3), row(begin - 2)), one_ago = interleave(row(begin - 2), last);
  for (int64_t t = begin; t < end + 3; ++t) {
    const __m512i now = row(t);
    const Pair newest = interleave(last, now);
    const Window window = interleave(two_ago, newest);
    if (t < end) _mm512_mask_storeu_epi8(u[0] + t * E, mask, indices(window, block.direction[0]));
    if (t >= begin + 3) _mm512_mask_storeu_epi8(u[1] + (t - 3) * E, mask, indices(window, block.direction[1]));
    two_ago = one_ago;
    one_ago = newest;
    last = now;
  }
  for (int d = 0; d < 2; ++d) {
    const Direction& w = block.direction[d];
    if (vbmi && w.tables.count <= BlockTables::kMax) {
      look_up_rows<true>(p.table, w.tables, mask, end - begin, E, u[d] + begin * E);
    } else {
      look_up_scalar(p.table, w, end - begin, E, lanes, u[d] + begin * E);
    }
  }
}

size_t scratch_bytes(const QuantConv1dSiluParams&, int) { return 0; }

void run(const QuantConv1dSiluParams& p, const void* packed, void*, int threads) {
  const bool vbmi = has_avx512_vbmi();
  const int64_t blocks = block_count(p);
  const int64_t chunks = (p.tokens + kChunkTokens - 1) / kChunkTokens;
  run_workers(threads, RangeCut(p.batch * chunks * blocks, 1), [&](int, auto& pieces) {
    for (WorkRange range; pieces.next(range);) {
      const int64_t item = range.begin;
      const int64_t block = item % blocks, chunk = item / blocks % chunks;
      const int64_t begin = p.tokens * chunk / chunks, end = p.tokens * (chunk + 1) / chunks;
      run_item(p, static_cast<const Block*>(packed)[block], item / blocks / chunks, block * kLanes, begin, end, vbmi);
    }
  });
}

}  // namespace

const CpuKernels<QuantConv1dSiluParams> kQuantConv1dSiluAvx512 = {packed_bytes, pack, scratch_bytes, run};

}  // namespace vimtrt
