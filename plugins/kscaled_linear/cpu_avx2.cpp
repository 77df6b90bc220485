// KScaledLinear with AVX2: 6 rows by 16 outputs in 12 accumulators. vpmaddwd on int16 copies is exact; vpmaddubsw would saturate.
#include <immintrin.h>

#include <cstring>

#include "plugins/common/threads.h"
#include "plugins/common/unroll.h"
#include "plugins/kscaled_linear/cpu.h"

namespace vimtrt {
namespace {

constexpr int kRows = 6;
constexpr int kOutputs = 16;
// Rows widened to int16 at a time, in the worker's scratch.
constexpr int64_t kPanelRows = 16 * kRows;

struct Packed {
  int64_t pairs;          // C / 2, rounded up
  int64_t blocks;         // O / 16, rounded up
  const int16_t* weight;  // [blocks, pairs, 16, 2]
  const float* channel_scale;
  const float* bias;
};

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

Packed layout(const KScaledLinearParams& p, const void* memory) {
  Packed packed;
  packed.pairs = round_up(p.in_features, 2) / 2;
  packed.blocks = round_up(p.out_features, kOutputs) / kOutputs;
  packed.weight = static_cast<const int16_t*>(memory);
  packed.channel_scale = reinterpret_cast<const float*>(packed.weight + packed.blocks * packed.pairs * kOutputs * 2);
  packed.bias = packed.channel_scale + packed.blocks * kOutputs;
  return packed;
}

size_t packed_bytes(const KScaledLinearParams& p) {
  const Packed packed = layout(p, nullptr);
  return static_cast<size_t>(packed.blocks * kOutputs * (packed.pairs * 4 + 2 * 4));
}

void pack(const KScaledLinearParams& p, void* memory) {
  std::memset(memory, 0, packed_bytes(p));
  const Packed packed = layout(p, memory);
  for (int64_t o = 0; o < p.out_features; ++o) {
    const int8_t* source = p.weight + o * p.in_features;
    int16_t* target = static_cast<int16_t*>(memory) + (o / kOutputs * packed.pairs * kOutputs + o % kOutputs) * 2;
    for (int64_t c = 0; c < p.in_features; ++c) target[c / 2 * kOutputs * 2 + c % 2] = source[c];
  }
  std::memcpy(const_cast<float*>(packed.channel_scale), p.channel_scale, static_cast<size_t>(p.out_features) * sizeof(float));
  std::memcpy(const_cast<float*>(packed.bias), p.bias, static_cast<size_t>(p.out_features) * sizeof(float));
}

size_t panel_bytes(const KScaledLinearParams& p) {
  const int64_t rows = p.rows < kPanelRows ? p.rows : kPanelRows;
  return static_cast<size_t>(round_up(rows * round_up(p.in_features, 2) * 2, 64));
}

size_t scratch_bytes(const KScaledLinearParams& p, int threads) { return panel_bytes(p) * static_cast<size_t>(threads); }

void widen(const KScaledLinearParams& p, WorkRange rows, int64_t width, int16_t* panel) {
  for (int64_t row = rows.begin; row < rows.end; ++row, panel += width) {
    const int8_t* x = p.x + row * p.x_stride;
    int64_t c = 0;
    for (; c + 16 <= p.in_features; c += 16) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + c));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(panel + c), _mm256_cvtepi8_epi16(bytes));
    }
    for (; c < p.in_features; ++c) panel[c] = x[c];
    for (; c < width; ++c) panel[c] = 0;
  }
}

// Keeps an accumulator in one register through a loop: without it GCC 12 copies each of them once a turn, and spills.
VIMTRT_ALWAYS_INLINE inline void pin(__m256i& acc) { asm("" : "+x"(acc)); }

// Eight outputs of one row.
VIMTRT_ALWAYS_INLINE inline __m256 scale(__m256i acc, __m256 token_scale, const float* a, const float* b, __m256 out_scale) {
  const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(acc), token_scale);
  return _mm256_mul_ps(_mm256_fmadd_ps(scaled, _mm256_load_ps(a), _mm256_load_ps(b)), out_scale);
}

// R rows of `panel`, which start at row `row`, by the block's 16 outputs; `outputs` of them exist.
template <int R>
void run_block(const KScaledLinearParams& p, const Packed& packed, const int16_t* panel, int64_t row, int64_t block, int64_t outputs) {
  const int16_t* weight = packed.weight + block * packed.pairs * kOutputs * 2;
  const int64_t width = packed.pairs * 2;
  __m256i acc[R][2];
  unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE { acc[r][0] = acc[r][1] = _mm256_setzero_si256(); });
  for (int64_t k = 0; k < packed.pairs; ++k) {
    const __m256i w0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(weight + k * kOutputs * 2));
    const __m256i w1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(weight + k * kOutputs * 2 + 16));
    unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE {
      int32_t pair;
      std::memcpy(&pair, panel + r * width + 2 * k, sizeof pair);
      const __m256i x = _mm256_set1_epi32(pair);
      acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(x, w0));
      acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(x, w1));
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
    // What is far below -128 converts to INT_MIN and packs to -128; above 127 it would convert to INT_MIN too, hence the min, which hands
    // on its second operand where that is NaN: INT_MIN again.
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

void run_rows(const KScaledLinearParams& p, const Packed& packed, const int16_t* panel, WorkRange rows, int64_t block, int64_t outputs) {
  const int64_t width = packed.pairs * 2;
  int64_t row = rows.begin;
  for (; row + kRows <= rows.end; row += kRows, panel += kRows * width) run_block<kRows>(p, packed, panel, row, block, outputs);
  switch (rows.end - row) {
    case 5:
      return run_block<5>(p, packed, panel, row, block, outputs);
    case 4:
      return run_block<4>(p, packed, panel, row, block, outputs);
    case 3:
      return run_block<3>(p, packed, panel, row, block, outputs);
    case 2:
      return run_block<2>(p, packed, panel, row, block, outputs);
    case 1:
      return run_block<1>(p, packed, panel, row, block, outputs);
    default:
      return;
  }
}

void run(const KScaledLinearParams& p, const void* memory, void* scratch, int threads) {
  const Packed packed = layout(p, memory);
  run_workers(threads, [&](int worker, int workers) {
    const WorkTile tile = work_tile(p.rows, kRows, p.out_features, kOutputs, worker, workers);
    int16_t* panel = reinterpret_cast<int16_t*>(static_cast<char*>(scratch) + panel_bytes(p) * static_cast<size_t>(worker));
    for (int64_t begin = tile.rows.begin; begin < tile.rows.end; begin += kPanelRows) {
      const WorkRange rows = {begin, begin + kPanelRows < tile.rows.end ? begin + kPanelRows : tile.rows.end};
      widen(p, rows, packed.pairs * 2, panel);
      for (int64_t o = tile.columns.begin; o < tile.columns.end; o += kOutputs) {
        const int64_t outputs = tile.columns.end - o < kOutputs ? tile.columns.end - o : kOutputs;
        run_rows(p, packed, panel, rows, o / kOutputs, outputs);
      }
    }
  });
}

}  // namespace

const KScaledLinearCpu kKScaledLinearAvx2 = {packed_bytes, pack, scratch_bytes, run};

}  // namespace vimtrt
