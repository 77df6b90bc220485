// What the AVX-512 and the AMX kernel of KScaledLinear share: the weights' layout, the epilogue, the table lookup.
// Internal linkage, as in threads.h.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "plugins/common/lookup_avx512.h"
#include "plugins/common/threads.h"
#include "plugins/common/unroll.h"
#include "plugins/kscaled_linear/cpu.h"

namespace vimtrt {
namespace {

constexpr int kOutputs = 64;  // of a block

struct Packed {
  int64_t quads;              // C / 4, rounded up
  int64_t blocks;             // O / 64, rounded up
  const int8_t* weight;       // [blocks, quads, 64, 4]
  const int32_t* correction;  // [blocks * 64]: -128 * sum of the output's weights
  const float* channel_scale;
  const float* bias;
  const BlockTables* tables;  // [blocks]
  const int32_t* in_range;    // one number; not 0: whatever x is, no step of the epilogue leaves int32's range
};

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// `columns`: what C is rounded up to, a multiple of 4.
Packed layout(const KScaledLinearParams& p, const void* memory, int64_t columns) {
  Packed packed;
  packed.quads = round_up(p.in_features, columns) / 4;
  packed.blocks = round_up(p.out_features, kOutputs) / kOutputs;
  packed.weight = static_cast<const int8_t*>(memory);
  packed.correction = reinterpret_cast<const int32_t*>(packed.weight + packed.blocks * packed.quads * kOutputs * 4);
  packed.channel_scale = reinterpret_cast<const float*>(packed.correction + packed.blocks * kOutputs);
  packed.bias = packed.channel_scale + packed.blocks * kOutputs;
  packed.tables = reinterpret_cast<const BlockTables*>(packed.bias + packed.blocks * kOutputs);
  packed.in_range = reinterpret_cast<const int32_t*>(packed.tables + packed.blocks);
  return packed;
}

size_t packed_size(const Packed& packed) {
  return static_cast<size_t>(packed.blocks) *
             (kOutputs * (static_cast<size_t>(packed.quads) * 4 + 3 * 4) + sizeof(BlockTables)) +
         sizeof(int32_t);
}

double larger(double a, double b) { return a < b ? b : a; }

// Whether no step of the epilogue can leave int32's range, with a factor of two to spare for rounding. Not where a
// constant is not finite.
bool stays_in_range(const KScaledLinearParams& p) {
  constexpr double kLimit = 0x1p30;
  double largest_sum = 0, largest_scaled = 0, largest_bias = 0;  // scaled: times the channel's scale
  for (int64_t o = 0; o < p.out_features; ++o) {
    const double scale = fabsf(p.channel_scale[o]), bias = fabsf(p.bias[o]);
    if (!__builtin_isfinite(scale) || !__builtin_isfinite(bias)) return false;
    int64_t weights = 0;
    for (int64_t c = 0; c < p.in_features; ++c) weights += std::abs(p.weight[o * p.in_features + c]);
    const double sum = 128.0 * static_cast<double>(weights);
    largest_sum = larger(largest_sum, sum);
    largest_scaled = larger(largest_scaled, sum * scale);
    largest_bias = larger(largest_bias, bias);
  }
  for (int64_t t = 0; t < p.tokens; ++t) {
    const double token_scale = fabsf(p.token_scale[t]), result = largest_scaled * token_scale + largest_bias;
    const double scaled_result = result * fabsf(p.out_token_scale[t]);
    if (!(largest_sum * token_scale < kLimit && result < kLimit && scaled_result < kLimit)) return false;
  }
  return true;
}

void pack_weights(const KScaledLinearParams& p, void* memory, int64_t columns) {
  const Packed packed = layout(p, memory, columns);
  std::memset(memory, 0, packed_size(packed));
  int8_t* weight = static_cast<int8_t*>(memory);
  int32_t* correction = const_cast<int32_t*>(packed.correction);
  for (int64_t o = 0; o < p.out_features; ++o) {
    const int8_t* source = p.weight + o * p.in_features;
    int8_t* target = weight + (o / kOutputs * packed.quads * kOutputs + o % kOutputs) * 4;
    int32_t sum = 0;
    for (int64_t c = 0; c < p.in_features; ++c) {
      target[c / 4 * kOutputs * 4 + c % 4] = source[c];
      sum += source[c];
    }
    correction[o] = -128 * sum;
  }
  std::memcpy(const_cast<float*>(packed.channel_scale), p.channel_scale,
              static_cast<size_t>(p.out_features) * sizeof(float));
  std::memcpy(const_cast<float*>(packed.bias), p.bias, static_cast<size_t>(p.out_features) * sizeof(float));
  *const_cast<int32_t*>(packed.in_range) = stays_in_range(p);
  if (p.table_id == nullptr) return;
  for (int64_t o = 0; o < p.out_features; ++o) {
    if (p.table_id[o] >= 0)
      const_cast<BlockTables*>(packed.tables)[o / kOutputs].add(static_cast<int>(o % kOutputs), p.table_id[o]);
  }
}

__mmask16 lanes(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// The first `count` floats; masked stores are slower, even with every bit set.
void store_floats(float* y, int64_t count, __m512 value) {
  if (count >= 16) {
    _mm512_storeu_ps(y, value);
  } else {
    _mm512_mask_storeu_ps(y, lanes(count), value);
  }
}

void store_bytes(int8_t* y, int64_t count, __m512i value) {
  if (count >= 64) {
    _mm512_storeu_si512(y, value);
  } else {
    _mm512_mask_storeu_epi8(y, (1ull << count) - 1, value);
  }
}

// Multiplying by it changes no bit.
bool is_one(const float* scale) {
  int32_t bits;
  std::memcpy(&bits, scale, sizeof bits);
  return bits == 0x3f800000;
}

// The epilogue of one row: sum(v) is the int32 sum of outputs first_output + 16 v.. for v < V. Writes y as it is before
// the tables. A network's layers have one of the two scales, so a branch for each costs less than the products.
template <int V, class Sum>
VIMTRT_ALWAYS_INLINE inline void finish_row(const KScaledLinearParams& p, const Packed& packed, int64_t row,
                                            int64_t token, int64_t first_output, int64_t outputs, const Sum& sum) {
  const int64_t at = row * p.out_features + first_output;
  __m512 value[V];
  unroll<V>([&](auto v) VIMTRT_ALWAYS_INLINE { value[v] = _mm512_cvtepi32_ps(sum(v)); });
  if (!is_one(p.token_scale + token)) {
    const __m512 scale = _mm512_set1_ps(p.token_scale[token]);
    unroll<V>([&](auto v) VIMTRT_ALWAYS_INLINE { value[v] = _mm512_mul_ps(value[v], scale); });
  }
  unroll<V>([&](auto v) VIMTRT_ALWAYS_INLINE {
    const __m512 b = _mm512_load_ps(packed.bias + first_output + 16 * v);
    value[v] = _mm512_fmadd_ps(value[v], _mm512_load_ps(packed.channel_scale + first_output + 16 * v), b);
  });
  if (!is_one(p.out_token_scale + token)) {
    const __m512 scale = _mm512_set1_ps(p.out_token_scale[token]);
    unroll<V>([&](auto v) VIMTRT_ALWAYS_INLINE { value[v] = _mm512_mul_ps(value[v], scale); });
  }
  if (p.y_float != nullptr) {
    unroll<V>([&](auto v) VIMTRT_ALWAYS_INLINE { store_floats(p.y_float + at + 16 * v, outputs - 16 * v, value[v]); });
    return;
  }
  // What is far below -128, and NaN, converts to INT_MIN and packs to -128; far above 127 it would convert to INT_MIN
  // too, hence the min where that can happen. It hands on its second operand where that is NaN.
  if (*packed.in_range == 0) {
    unroll<V>([&](auto v) VIMTRT_ALWAYS_INLINE { value[v] = _mm512_min_ps(_mm512_set1_ps(127.0f), value[v]); });
  }
  __m512i q[4] = {};
  unroll<V>([&](auto v) VIMTRT_ALWAYS_INLINE { q[v] = _mm512_cvtps_epi32(value[v]); });
  // The packs work within 128-bit lanes and leave 4-byte pieces in the order 0 4 8 12, 1 5 9 13, ...
  const __m512i pieces = _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i result = _mm512_permutexvar_epi32(order, pieces);
  store_bytes(p.y_int8 + at, outputs, result);
}

// Replaces q by its channels' table entries in rows of y, for the outputs of a block.
void look_up(const KScaledLinearParams& p, const Packed& packed, bool vbmi, WorkRange rows, int64_t block,
             int64_t outputs) {
  if (p.table == nullptr || packed.tables[block].count == 0) return;
  const int64_t first_output = block * kOutputs;
  int8_t* y = p.y_int8 + rows.begin * p.out_features + first_output;
  if (vbmi && packed.tables[block].count <= BlockTables::kMax) {
    const __mmask64 mask = ~uint64_t{0} >> (kOutputs - outputs);
    return look_up_rows<false>(p.table, packed.tables[block], mask, rows.end - rows.begin, p.out_features, y);
  }
  for (int64_t row = rows.begin; row < rows.end; ++row, y += p.out_features) {
    for (int64_t o = 0; o < outputs; ++o) {
      const int64_t id = p.table_id[first_output + o];
      if (id >= 0) y[o] = p.table[id * 256 + 128 + y[o]];
    }
  }
}

// Calls body(rows, outputs of the block, block) for each piece: a panel of rows and a block of outputs.
template <class Body>
VIMTRT_ALWAYS_INLINE inline void each_block(Pieces<TileCut>& pieces, const Body& body) {
  for (WorkTile tile; pieces.next(tile);) {
    body(tile.rows, tile.columns.end - tile.columns.begin, tile.columns.begin / kOutputs);
  }
}

}  // namespace
}  // namespace vimtrt
