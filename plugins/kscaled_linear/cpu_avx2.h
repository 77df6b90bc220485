// What the AVX2 and the AVX-VNNI kernel of KScaledLinear share: everything but the products. Internal
// linkage, as in threads.h.
//
// Products is one of them: 4 bytes of a row of x by 4 bytes of each of 8 outputs' weights into 8 sums; kColumns columns
// of x take these 4 bytes.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "plugins/common/threads.h"
#include "plugins/common/unroll.h"
#include "plugins/kscaled_linear/cpu.h"

namespace vimtrt {
namespace {

constexpr int kRows = 6;
constexpr int kOutputs = 16;
constexpr int kStepBytes = 4;
// Rows that are converted at a time, in the worker's scratch.
constexpr int64_t kPanelRows = 16 * kRows;

struct Packed {
  int64_t steps;              // C / Products::kColumns, rounded up
  int64_t blocks;             // O / 16, rounded up
  const uint8_t* weight;      // [blocks, steps, 16, 4 bytes]
  const int32_t* correction;  // [blocks * 16]: where the sums start
  const float* channel_scale;
  const float* bias;
};

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

template <class Products>
Packed layout(const KScaledLinearParams& p, const void* memory) {
  Packed packed;
  packed.steps = round_up(p.in_features, Products::kColumns) / Products::kColumns;
  packed.blocks = round_up(p.out_features, kOutputs) / kOutputs;
  packed.weight = static_cast<const uint8_t*>(memory);
  packed.correction =
      reinterpret_cast<const int32_t*>(packed.weight + packed.blocks * packed.steps * kOutputs * kStepBytes);
  packed.channel_scale = reinterpret_cast<const float*>(packed.correction + packed.blocks * kOutputs);
  packed.bias = packed.channel_scale + packed.blocks * kOutputs;
  return packed;
}

template <class Products>
size_t packed_bytes(const KScaledLinearParams& p) {
  const Packed packed = layout<Products>(p, nullptr);
  return static_cast<size_t>(packed.blocks * kOutputs * (packed.steps * kStepBytes + 3 * 4));
}

template <class Products>
void pack(const KScaledLinearParams& p, void* memory) {
  using Weight = typename Products::Weight;
  std::memset(memory, 0, packed_bytes<Products>(p));
  const Packed packed = layout<Products>(p, memory);
  constexpr int64_t kColumns = Products::kColumns;
  for (int64_t o = 0; o < p.out_features; ++o) {
    const int8_t* source = p.weight + o * p.in_features;
    Weight* target = static_cast<Weight*>(memory) + (o / kOutputs * packed.steps * kOutputs + o % kOutputs) * kColumns;
    int32_t sum = 0;
    for (int64_t c = 0; c < p.in_features; ++c) {
      target[c / kColumns * kOutputs * kColumns + c % kColumns] = source[c];
      sum += source[c];
    }
    const_cast<int32_t*>(packed.correction)[o] = -Products::kZero * sum;
  }
  std::memcpy(const_cast<float*>(packed.channel_scale), p.channel_scale,
              static_cast<size_t>(p.out_features) * sizeof(float));
  std::memcpy(const_cast<float*>(packed.bias), p.bias, static_cast<size_t>(p.out_features) * sizeof(float));
}

template <class Products>
size_t panel_bytes(const KScaledLinearParams& p) {
  const int64_t rows = p.rows < kPanelRows ? p.rows : kPanelRows;
  return static_cast<size_t>(round_up(rows * layout<Products>(p, nullptr).steps * kStepBytes, 64));
}

template <class Products>
size_t scratch_bytes(const KScaledLinearParams& p, int threads) {
  return panel_bytes<Products>(p) * static_cast<size_t>(threads);
}

// Keeps an accumulator in one register through a loop: without it GCC 12 copies each of them once
// an iteration, and spills.
VIMTRT_ALWAYS_INLINE inline void pin(__m256i& acc) { asm("" : "+x"(acc)); }

// Eight outputs of one row.
VIMTRT_ALWAYS_INLINE inline __m256 scale(__m256i acc, __m256 token_scale, const float* a, const float* b,
                                         __m256 out_scale) {
  const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(acc), token_scale);
  return _mm256_mul_ps(_mm256_fmadd_ps(scaled, _mm256_load_ps(a), _mm256_load_ps(b)), out_scale);
}

// R rows of `panel`, which start at row `row`, by the block's 16 outputs; `outputs` of them exist.
template <class Products, int R>
void run_block(const KScaledLinearParams& p, const Packed& packed, const uint8_t* panel, int64_t row, int64_t block,
               int64_t outputs) {
  const uint8_t* weight = packed.weight + block * packed.steps * kOutputs * kStepBytes;
  const int64_t width = packed.steps * kStepBytes;
  __m256i acc[R][2];
  const __m256i* start = reinterpret_cast<const __m256i*>(packed.correction + block * kOutputs);
  unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE {
    acc[r][0] = _mm256_load_si256(start);
    acc[r][1] = _mm256_load_si256(start + 1);
  });
  for (int64_t k = 0; k < packed.steps; ++k, weight += kOutputs * kStepBytes) {
    const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(weight));
    const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(weight) + 1);
    unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE {
      int32_t columns;
      std::memcpy(&columns, panel + r * width + kStepBytes * k, sizeof columns);
      const __m256i x = _mm256_set1_epi32(columns);
      acc[r][0] = Products::add(acc[r][0], x, w0);
      acc[r][1] = Products::add(acc[r][1], x, w1);
      pin(acc[r][0]);
      pin(acc[r][1]);
    });
  }

  const int64_t first_output = block * kOutputs;
  const float* a = packed.channel_scale + first_output;
  const float* b = packed.bias + first_output;
  int64_t token = row % p.tokens;
  unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE {
    const __m256 token_scale = _mm256_set1_ps(p.token_scale[token]);
    const __m256 out_scale = _mm256_set1_ps(p.out_token_scale[token]);
    if (++token == p.tokens) token = 0;
    const __m256 v0 = scale(acc[r][0], token_scale, a, b, out_scale);
    const __m256 v1 = scale(acc[r][1], token_scale, a + 8, b + 8, out_scale);
    const int64_t at = (row + r) * p.out_features + first_output;
    if (p.y_float != nullptr) {
      float tile[kOutputs];
      float* target = outputs == kOutputs ? p.y_float + at : tile;
      _mm256_storeu_ps(target, v0);
      _mm256_storeu_ps(target + 8, v1);
      if (target == tile) std::memcpy(p.y_float + at, tile, static_cast<size_t>(outputs) * sizeof(float));
      return;
    }
    // What is far below -128 converts to INT_MIN and packs to -128; above 127 it would convert to INT_MIN too, hence
    // the min, which hands on its second operand where that is NaN: INT_MIN again.
    const __m256i q0 = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_set1_ps(127.0f), v0));
    const __m256i q1 = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_set1_ps(127.0f), v1));
    const __m256i q16 = _mm256_permute4x64_epi64(_mm256_packs_epi32(q0, q1), 0xd8);
    const __m128i q = _mm_packs_epi16(_mm256_castsi256_si128(q16), _mm256_extracti128_si256(q16, 1));
    int8_t tile[kOutputs];
    int8_t* target = outputs == kOutputs ? p.y_int8 + at : tile;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(target), q);
    if (p.table != nullptr) {
      for (int64_t o = 0; o < outputs; ++o) {
        const int32_t id = p.table_id[first_output + o];
        if (id >= 0) target[o] = p.table[static_cast<int64_t>(id) * 256 + 128 + target[o]];
      }
    }
    if (target == tile) std::memcpy(p.y_int8 + at, tile, static_cast<size_t>(outputs));
  });
}

template <class Products>
void run_rows(const KScaledLinearParams& p, const Packed& packed, const uint8_t* panel, WorkRange rows, int64_t block,
              int64_t outputs) {
  const int64_t width = packed.steps * kStepBytes;
  int64_t row = rows.begin;
  for (; row + kRows <= rows.end; row += kRows, panel += kRows * width)
    run_block<Products, kRows>(p, packed, panel, row, block, outputs);
  switch (rows.end - row) {
    case 5:
      return run_block<Products, 5>(p, packed, panel, row, block, outputs);
    case 4:
      return run_block<Products, 4>(p, packed, panel, row, block, outputs);
    case 3:
      return run_block<Products, 3>(p, packed, panel, row, block, outputs);
    case 2:
      return run_block<Products, 2>(p, packed, panel, row, block, outputs);
    case 1:
      return run_block<Products, 1>(p, packed, panel, row, block, outputs);
    default:
      return;
  }
}

template <class Products>
void run(const KScaledLinearParams& p, const void* memory, void* scratch, int threads) {
  const Packed packed = layout<Products>(p, memory);
  run_workers(threads, TileCut(p.rows, kRows, kPanelRows, p.out_features, kOutputs), [&](int worker, auto& pieces) {
    uint8_t* panel = static_cast<uint8_t*>(scratch) + panel_bytes<Products>(p) * static_cast<size_t>(worker);
    int64_t filled = -1;
    for (WorkTile tile; pieces.next(tile);) {
      const WorkRange rows = tile.rows;
      for (int64_t row = rows.begin; filled != rows.begin && row < rows.end; ++row) {
        Products::convert(p.x + row * p.x_stride, p.in_features, packed.steps * kStepBytes,
                          panel + (row - rows.begin) * packed.steps * kStepBytes);
      }
      filled = rows.begin;
      const int64_t outputs = tile.columns.end - tile.columns.begin;
      run_rows<Products>(p, packed, panel, rows, tile.columns.begin / kOutputs, outputs);
    }
  });
}

}  // namespace
}  // namespace vimtrt
