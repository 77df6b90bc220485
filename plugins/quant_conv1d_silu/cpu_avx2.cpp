// QuantConv1dSiLU, 16 channels at a time: tokens are widened to 16 bits and multiplied in pairs by vpmaddwd.
#include <immintrin.h>

#include "plugins/common/threads.h"
#include "plugins/quant_conv1d_silu/cpu.h"

namespace vimtrt {
namespace {

constexpr int kLanes = 16;        // channels of a block
constexpr int kChunkTokens = 64;  // most tokens of a work item

// One direction of one block. Register v, 32-bit lane 4 i + k holds channel 8 i + 4 v + k: the order in which 16-bit
// numbers interleave, and which the saturating pack undoes.
struct alignas(64) Direction {
  int16_t early[2][16];  // weights of the window's first two tokens, two numbers per channel
  int16_t late[2][16];   // and of its last two
  float scale[2][8];
  float bias[2][8];
  int32_t table_offset[kLanes];  // 256 * table_id
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
    const int v = lane / 4 % 2, slot = lane / 8 * 4 + lane % 4;
    for (int j = 0; j < 4; ++j) {
      const int place = d == 0 ? j : 3 - j;
      (place < 2 ? out.early : out.late)[v][slot * 2 + place % 2] = p.weight[source * 4 + j];
    }
    out.scale[v][slot] = p.channel_scale[source];
    out.bias[v][slot] = p.bias[source];
    out.table_offset[lane] = p.table_id[source] * 256;
  }
}

void pack(const QuantConv1dSiluParams& p, void* packed) {
  for (int64_t block = 0; block < block_count(p); ++block) {
    for (int d = 0; d < 2; ++d) pack_direction(p, d, block * kLanes, static_cast<Block*>(packed)[block].direction[d]);
  }
}

// Two tokens of 16 channels as 16-bit numbers: register v, 32-bit lane 4 i + k holds both of channel 8 i + 4 v + k.
struct Pair {
  __m256i numbers[2];
};

inline Pair interleave(__m256i first, __m256i second) {
  return {{_mm256_unpacklo_epi16(first, second), _mm256_unpackhi_epi16(first, second)}};
}

inline __m256i load(const void* source) { return _mm256_load_si256(static_cast<const __m256i*>(source)); }

// Table indices q + 128 of 16 channels. Only large positive numbers need a clamp: the conversion makes every number
// below int32 the lowest one, and the packs saturate.
inline __m128i indices(const Pair& early, const Pair& late, const Direction& w) {
  __m256i q[2];
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    const __m256i acc = _mm256_add_epi32(_mm256_madd_epi16(early.numbers[v], load(w.early[v])),
                                         _mm256_madd_epi16(late.numbers[v], load(w.late[v])));
    const __m256 value =
        _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc), _mm256_load_ps(w.scale[v]), _mm256_load_ps(w.bias[v]));
    q[v] = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_set1_ps(127.0f), value));
  }
  const __m256i words = _mm256_packs_epi32(q[0], q[1]);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  return _mm_xor_si128(bytes, _mm_set1_epi8(-128));
}

// The first `lanes` of 16 bytes; nothing behind them is read.
inline __m128i load_bytes(const int8_t* source, int lanes) {
  if (lanes == kLanes) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  alignas(16) int8_t bytes[kLanes] = {};
  for (int lane = 0; lane < lanes; ++lane) bytes[lane] = source[lane];
  return _mm_load_si128(reinterpret_cast<const __m128i*>(bytes));
}

inline void look_up(const int8_t* table, const Direction& w, int lanes, __m128i index, int8_t* u) {
  alignas(16) uint8_t bytes[kLanes];
  _mm_store_si128(reinterpret_cast<__m128i*>(bytes), index);
  if (lanes == kLanes) {
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) u[lane] = table[w.table_offset[lane] + bytes[lane]];
  } else {
    for (int lane = 0; lane < lanes; ++lane) u[lane] = table[w.table_offset[lane] + bytes[lane]];
  }
}

// Tokens [begin, end) of one image and one block of channels.
void run_item(const QuantConv1dSiluParams& p, const Block& block, int64_t image, int64_t first_channel, int64_t begin,
              int64_t end) {
  const int64_t L = p.tokens, E = p.channels;
  const int lanes = E - first_channel >= kLanes ? kLanes : static_cast<int>(E - first_channel);
  const int8_t* x = p.x + image * L * p.x_stride + first_channel;
  int8_t* u[2] = {p.u[0] + image * L * E + first_channel, p.u[1] + image * L * E + first_channel};

  // Tokens outside the sequence are zeros.
  const auto row = [&](int64_t t) {
    return t >= 0 && t < L ? _mm256_cvtepi8_epi16(load_bytes(x + t * p.x_stride, lanes)) : _mm256_setzero_si256();
  };
  // The window of tokens t - 3 .. t serves the forward direction at t and the backward direction at t - 3.
  __m256i last = row(begin - 1);
  Pair two_ago = interleave(row(begin - 3), row(begin - 2)), one_ago = interleave(row(begin - 2), last);
  for (int64_t t = begin; t < end + 3; ++t) {
    const __m256i now = row(t);
    const Pair newest = interleave(last, now);
    if (t < end)
      look_up(p.table, block.direction[0], lanes, indices(two_ago, newest, block.direction[0]), u[0] + t * E);
    if (t >= begin + 3)
      look_up(p.table, block.direction[1], lanes, indices(two_ago, newest, block.direction[1]), u[1] + (t - 3) * E);
    two_ago = one_ago;
    one_ago = newest;
    last = now;
  }
}

size_t scratch_bytes(const QuantConv1dSiluParams&, int) { return 0; }

void run(const QuantConv1dSiluParams& p, const void* packed, void*, int threads) {
  const int64_t blocks = block_count(p);
  const int64_t chunks = (p.tokens + kChunkTokens - 1) / kChunkTokens;
  run_workers(threads, RangeCut(p.batch * chunks * blocks, 1), [&](int, auto& pieces) {
    for (WorkRange range; pieces.next(range);) {
      const int64_t item = range.begin;
      const int64_t block = item % blocks, chunk = item / blocks % chunks;
      const int64_t begin = p.tokens * chunk / chunks, end = p.tokens * (chunk + 1) / chunks;
      run_item(p, static_cast<const Block*>(packed)[block], item / blocks / chunks, block * kLanes, begin, end);
    }
  });
}

}  // namespace

const CpuKernels<QuantConv1dSiluParams> kQuantConv1dSiluAvx2 = {packed_bytes, pack, scratch_bytes, run};

}  // namespace vimtrt
