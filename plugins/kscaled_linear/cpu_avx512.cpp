// KScaledLinear with AVX-512 VNNI: 6 rows by 64 outputs in 24 accumulators, the epilogue in the same registers.
#include <immintrin.h>

#include <cstring>

#include "plugins/common/threads.h"
#include "plugins/common/unroll.h"
#include "plugins/kscaled_linear/cpu.h"

namespace vimtrt {
namespace {

constexpr int kRows = 6;
constexpr int kOutputs = 64;
// Rows between two changes of the block of outputs: their x stays in the second-level cache while every block passes over it.
constexpr int64_t kPanelRows = 16 * kRows;

using Lookup = void (*)(const KScaledLinearParams& p, int64_t first_output, int64_t outputs, int8_t* tile);

struct Packed {
  int64_t quads;              // C / 4, rounded up
  int64_t blocks;             // O / 64, rounded up
  const int8_t* weight;       // [blocks, quads, 64, 4]
  const int32_t* correction;  // [blocks * 64]: -128 * sum of the output's weights
  const float* channel_scale;
  const float* bias;
};

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

Packed layout(const KScaledLinearParams& p, const void* memory) {
  Packed packed;
  packed.quads = round_up(p.in_features, 4) / 4;
  packed.blocks = round_up(p.out_features, kOutputs) / kOutputs;
  packed.weight = static_cast<const int8_t*>(memory);
  packed.correction = reinterpret_cast<const int32_t*>(packed.weight + packed.blocks * packed.quads * kOutputs * 4);
  packed.channel_scale = reinterpret_cast<const float*>(packed.correction + packed.blocks * kOutputs);
  packed.bias = packed.channel_scale + packed.blocks * kOutputs;
  return packed;
}

size_t packed_bytes(const KScaledLinearParams& p) {
  const Packed packed = layout(p, nullptr);
  return static_cast<size_t>(packed.blocks * kOutputs * (packed.quads * 4 + 3 * 4));
}

void pack(const KScaledLinearParams& p, void* memory) {
  std::memset(memory, 0, packed_bytes(p));
  const Packed packed = layout(p, memory);
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
  std::memcpy(const_cast<float*>(packed.channel_scale), p.channel_scale, static_cast<size_t>(p.out_features) * sizeof(float));
  std::memcpy(const_cast<float*>(packed.bias), p.bias, static_cast<size_t>(p.out_features) * sizeof(float));
}

int32_t load_quad(const int8_t* x) {
  int32_t value;
  std::memcpy(&value, x, sizeof value);
  return value;
}

// The last 1..3 columns of a row: x may end where the buffer ends.
int32_t load_partial_quad(const int8_t* x, int64_t count) {
  uint32_t value = 0;
  for (int64_t c = 0; c < count; ++c) value |= static_cast<uint32_t>(static_cast<uint8_t>(x[c])) << (8 * c);
  return static_cast<int32_t>(value);
}

// Keeps an accumulator in one register through a loop: without it GCC 12 copies some of them once a turn, and spills.
VIMTRT_ALWAYS_INLINE inline void pin(__m512i& acc) { asm("" : "+v"(acc)); }

// One quad of columns of R rows, `load(r)` giving row r's: vpdpbusd takes unsigned x, so x + 128 goes in and the correction takes
// 128 * sum(w) out again.
template <int R, int V, class Load>
VIMTRT_ALWAYS_INLINE inline void multiply_quad(const Load& load, const int8_t* weight, __m512i (&acc)[R][V]) {
  __m512i w[V];
  unroll<V>([&](auto v) VIMTRT_ALWAYS_INLINE { w[v] = _mm512_load_si512(weight + 64 * v); });
  unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE {
    const __m512i u = _mm512_xor_si512(_mm512_set1_epi32(load(r)), _mm512_set1_epi8(-128));
    unroll<V>([&](auto v) VIMTRT_ALWAYS_INLINE {
      acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], u, w[v]);
      pin(acc[r][v]);
    });
  });
}

__mmask16 lanes(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1); }

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

// R rows by V * 16 outputs from `row` and `block` on; `outputs` of the block's 64 exist.
template <int R, int V>
void run_block(const KScaledLinearParams& p, const Packed& packed, Lookup lookup, int64_t row, int64_t block, int64_t outputs) {
  const int64_t first_output = block * kOutputs;
  const int8_t* weight = packed.weight + block * packed.quads * kOutputs * 4;
  const int8_t* x = p.x + row * p.x_stride;

  __m512i acc[R][V];
  unroll<V>([&](auto v) VIMTRT_ALWAYS_INLINE {
    const __m512i start = _mm512_load_si512(packed.correction + first_output + 16 * v);
    unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE { acc[r][v] = start; });
  });
  const int64_t whole = p.in_features / 4;
  const int64_t stride = p.x_stride;
  for (int64_t k = 0; k < whole; ++k) {
    const auto load = [&](int r) VIMTRT_ALWAYS_INLINE { return load_quad(x + r * stride + 4 * k); };
    multiply_quad<R, V>(load, weight + k * kOutputs * 4, acc);
  }
  if (whole != packed.quads) {
    const auto load = [&](int r) VIMTRT_ALWAYS_INLINE { return load_partial_quad(x + r * stride + 4 * whole, p.in_features - 4 * whole); };
    multiply_quad<R, V>(load, weight + whole * kOutputs * 4, acc);
  }

  alignas(64) int8_t tile[kRows * kOutputs];
  const bool to_float = p.y_float != nullptr;
  int64_t token = row % p.tokens;
  unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE {
    const __m512 token_scale = _mm512_set1_ps(p.token_scale[token]);
    const __m512 out_scale = _mm512_set1_ps(p.out_token_scale[token]);
    if (++token == p.tokens) token = 0;
    const int64_t at = (row + r) * p.out_features + first_output;
    __m512i q[4] = {};
    unroll<V>([&](auto v) VIMTRT_ALWAYS_INLINE {
      const __m512 a = _mm512_load_ps(packed.channel_scale + first_output + 16 * v);
      const __m512 b = _mm512_load_ps(packed.bias + first_output + 16 * v);
      const __m512 value = _mm512_mul_ps(_mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][v]), token_scale), a, b), out_scale);
      if (to_float) {
        store_floats(p.y_float + at + 16 * v, outputs - 16 * v, value);
      } else {
        // What is far below -128 converts to INT_MIN and packs to -128; above 127 it would convert to INT_MIN too, hence the min, which
        // hands on its second operand where that is NaN: INT_MIN again.
        q[v] = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_set1_ps(127.0f), value));
      }
    });
    if (to_float) return;
    // The packs work within 128-bit lanes and leave 4-byte pieces in the order 0 4 8 12, 1 5 9 13, ...
    const __m512i pieces = _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i result = _mm512_permutexvar_epi32(order, pieces);
    if (lookup != nullptr) {
      _mm512_store_si512(tile + r * kOutputs, result);
    } else {
      store_bytes(p.y_int8 + at, outputs, result);
    }
  });
  if (to_float || lookup == nullptr) return;
  lookup(p, first_output, outputs, tile);
  for (int r = 0; r < R; ++r) {
    store_bytes(p.y_int8 + (row + r) * p.out_features + first_output, outputs, _mm512_load_si512(tile + r * kOutputs));
  }
}

template <int V>
void run_rows(const KScaledLinearParams& p, const Packed& packed, Lookup lookup, WorkRange rows, int64_t block, int64_t outputs) {
  int64_t row = rows.begin;
  for (; row + kRows <= rows.end; row += kRows) run_block<kRows, V>(p, packed, lookup, row, block, outputs);
  switch (rows.end - row) {
    case 5:
      return run_block<5, V>(p, packed, lookup, row, block, outputs);
    case 4:
      return run_block<4, V>(p, packed, lookup, row, block, outputs);
    case 3:
      return run_block<3, V>(p, packed, lookup, row, block, outputs);
    case 2:
      return run_block<2, V>(p, packed, lookup, row, block, outputs);
    case 1:
      return run_block<1, V>(p, packed, lookup, row, block, outputs);
    default:
      return;
  }
}

// Table lookup of a tile of 6 rows by 64 outputs in place; rows that do not exist hold anything.
void lookup_scalar(const KScaledLinearParams& p, int64_t first_output, int64_t outputs, int8_t* tile) {
  for (int64_t o = 0; o < outputs; ++o) {
    const int32_t id = p.table_id[first_output + o];
    if (id < 0) continue;
    const int8_t* table = p.table + static_cast<int64_t>(id) * 256 + 128;
    for (int r = 0; r < kRows; ++r) tile[r * kOutputs + o] = table[tile[r * kOutputs + o]];
  }
}

// The same, one pass over the tile for each distinct table of the block: a table is four registers, indexed by q's low 7 bits in the
// half that q's sign chooses.
__attribute__((target("avx512vbmi"))) void lookup_vbmi(const KScaledLinearParams& p, int64_t first_output, int64_t outputs, int8_t* tile) {
  __m512i q[kRows];
  __m512i result[kRows];
  for (int r = 0; r < kRows; ++r) result[r] = q[r] = _mm512_load_si512(tile + r * kOutputs);
  __m512i ids[4];
  for (int v = 0; v < 4; ++v) {
    ids[v] = _mm512_mask_loadu_epi32(_mm512_set1_epi32(-1), lanes(outputs - 16 * v), p.table_id + first_output + 16 * v);
  }
  const __m512i none = _mm512_set1_epi32(-1);
  __mmask64 left = 0;
  for (int v = 0; v < 4; ++v) left |= static_cast<__mmask64>(_mm512_cmpgt_epi32_mask(ids[v], none)) << (16 * v);
  while (left != 0) {
    const int32_t id = p.table_id[first_output + __builtin_ctzll(left)];
    __mmask64 mine = 0;
    for (int v = 0; v < 4; ++v) mine |= static_cast<__mmask64>(_mm512_cmpeq_epi32_mask(ids[v], _mm512_set1_epi32(id))) << (16 * v);
    left &= ~mine;
    const int8_t* table = p.table + static_cast<int64_t>(id) * 256;
    const __m512i t0 = _mm512_loadu_si512(table);
    const __m512i t1 = _mm512_loadu_si512(table + 64);
    const __m512i t2 = _mm512_loadu_si512(table + 128);
    const __m512i t3 = _mm512_loadu_si512(table + 192);
    for (int r = 0; r < kRows; ++r) {
      const __m512i if_negative = _mm512_permutex2var_epi8(t0, q[r], t1);
      const __m512i if_positive = _mm512_permutex2var_epi8(t2, q[r], t3);
      const __mmask64 negative = _mm512_movepi8_mask(q[r]);
      result[r] = _mm512_mask_mov_epi8(result[r], mine, _mm512_mask_mov_epi8(if_positive, negative, if_negative));
    }
  }
  for (int r = 0; r < kRows; ++r) _mm512_store_si512(tile + r * kOutputs, result[r]);
}

size_t no_scratch(const KScaledLinearParams&, int) { return 0; }

void run(const KScaledLinearParams& p, const void* memory, void*, int threads) {
  const Packed packed = layout(p, memory);
  const Lookup lookup = p.table == nullptr ? nullptr : has_avx512_vbmi() ? lookup_vbmi : lookup_scalar;
  run_workers(threads, [&](int worker, int workers) {
    const WorkTile tile = work_tile(p.rows, kRows, p.out_features, kOutputs, worker, workers);
    for (int64_t begin = tile.rows.begin; begin < tile.rows.end; begin += kPanelRows) {
      const WorkRange rows = {begin, begin + kPanelRows < tile.rows.end ? begin + kPanelRows : tile.rows.end};
      for (int64_t o = tile.columns.begin; o < tile.columns.end; o += kOutputs) {
        const int64_t outputs = tile.columns.end - o < kOutputs ? tile.columns.end - o : kOutputs;
        switch ((outputs + 15) / 16) {
          case 4:
            run_rows<4>(p, packed, lookup, rows, o / kOutputs, outputs);
            break;
          case 3:
            run_rows<3>(p, packed, lookup, rows, o / kOutputs, outputs);
            break;
          case 2:
            run_rows<2>(p, packed, lookup, rows, o / kOutputs, outputs);
            break;
          case 1:
            run_rows<1>(p, packed, lookup, rows, o / kOutputs, outputs);
            break;
        }
      }
    }
  });
}

}  // namespace

const KScaledLinearCpu kKScaledLinearAvx512 = {packed_bytes, pack, no_scratch, run};

}  // namespace vimtrt
