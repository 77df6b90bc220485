// KScaledLinear with AVX-512 VNNI: 6 rows by 64 outputs in 24 accumulators, the epilogue in the same registers.
#include "plugins/kscaled_linear/cpu_avx512.h"

namespace vimtrt {
namespace {

constexpr int kRows = 6;
// Rows between two changes of the block of outputs: their x stays in the second-level cache while every
// block passes over it.
constexpr int64_t kPanelRows = 16 * kRows;
constexpr int64_t kColumns = 4;  // that C is rounded up to

int32_t load_quad(const uint8_t* x) {
  int32_t value;
  std::memcpy(&value, x, sizeof value);
  return value;
}

int64_t worker_bytes(const KScaledLinearParams& p) {
  const int64_t rows = p.rows < kPanelRows ? p.rows : kPanelRows;
  return round_up(rows * round_up(p.in_features, kColumns), 64);
}

size_t scratch_bytes(const KScaledLinearParams& p, int threads) {
  return static_cast<size_t>(worker_bytes(p)) * static_cast<size_t>(threads);
}

// panel [rows, C rounded up] = x + 128, any number where C ends: the weights are zeros there.
void fill_panel(const KScaledLinearParams& p, WorkRange rows, uint8_t* panel) {
  const int64_t width = round_up(p.in_features, kColumns);
  for (int64_t row = rows.begin; row < rows.end; ++row, panel += width) {
    const int8_t* x = p.x + row * p.x_stride;
    for (int64_t c = 0; c < p.in_features; c += 64) {
      const int64_t left = p.in_features - c;
      const __mmask64 mask = left >= 64 ? ~0ull : (1ull << left) - 1;
      const __m512i biased = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, x + c), _mm512_set1_epi8(-128));
      _mm512_mask_storeu_epi8(panel + c, mask, biased);
    }
  }
}

// acc += the products, in its own register: GCC 12 makes copies of the intrinsic's accumulators in a loop, and spills.
VIMTRT_ALWAYS_INLINE inline void multiply_add(__m512i& acc, __m512i u, __m512i w) {
  asm("vpdpbusd {%2, %1, %0|%0, %1, %2}" : "+v"(acc) : "v"(u), "v"(w));
}

// R rows of the panel by V * 16 outputs from `row` and `block` on; `outputs` of the block's 64 exist. vpdpbusd takes
// unsigned x, so x + 128 goes in and the correction, where the sums start, takes 128 * sum(w) out again. Fetches y, and
// a line for each quad from `ahead` on where kAhead: many at once would hold up the loads of x.
template <int R, int V, bool kAhead = false>
void run_block(const KScaledLinearParams& p, const Packed& packed, const uint8_t* panel, int64_t row, int64_t block,
               int64_t outputs, const int8_t* ahead = nullptr) {
  const int64_t first_output = block * kOutputs;
  const int8_t* weight = packed.weight + block * packed.quads * kOutputs * 4;
  const int64_t width = packed.quads * 4;
  if (p.y_int8 != nullptr) {
    unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE {
      _mm_prefetch(p.y_int8 + (row + r) * p.out_features + first_output, _MM_HINT_T0);
    });
  }
  __m512i acc[R][V];
  unroll<V>([&](auto v) VIMTRT_ALWAYS_INLINE {
    const __m512i start = _mm512_load_si512(packed.correction + first_output + 16 * v);
    unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE { acc[r][v] = start; });
  });
  for (int64_t k = 0; k < packed.quads; ++k, weight += kOutputs * 4) {
    if constexpr (kAhead) _mm_prefetch(ahead + 64 * k, _MM_HINT_T0);
    __m512i w[V];
    unroll<V>([&](auto v) VIMTRT_ALWAYS_INLINE { w[v] = _mm512_load_si512(weight + 64 * v); });
    unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE {
      const __m512i u = _mm512_set1_epi32(load_quad(panel + r * width + 4 * k));
      unroll<V>([&](auto v) VIMTRT_ALWAYS_INLINE { multiply_add(acc[r][v], u, w[v]); });
    });
  }

  int64_t token = row % p.tokens;
  unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE {
    const auto sum = [&](auto v) VIMTRT_ALWAYS_INLINE { return acc[r][v]; };
    finish_row<V>(p, packed, row + r, token, first_output, outputs, sum);
    if (++token == p.tokens) token = 0;
  });
}

// Rows of a panel by a block. When a layer begins its weights lie in the third-level cache or in memory: the first four
// tiles fetch a quarter each of the next block's.
template <int V>
void run_rows(const KScaledLinearParams& p, const Packed& packed, const uint8_t* panel, WorkRange rows, int64_t block,
              int64_t outputs) {
  const int64_t width = packed.quads * 4;
  const int64_t quarter = packed.quads * kOutputs;
  const int8_t* ahead = packed.weight + (block + 1) % packed.blocks * 4 * quarter;
  int64_t row = rows.begin;
  for (; row + kRows <= rows.end; row += kRows, panel += kRows * width) {
    if (row < rows.begin + 4 * kRows) {
      run_block<kRows, V, true>(p, packed, panel, row, block, outputs, ahead);
      ahead += quarter;
    } else {
      run_block<kRows, V>(p, packed, panel, row, block, outputs);
    }
  }
  switch (rows.end - row) {
    case 5:
      return run_block<5, V>(p, packed, panel, row, block, outputs);
    case 4:
      return run_block<4, V>(p, packed, panel, row, block, outputs);
    case 3:
      return run_block<3, V>(p, packed, panel, row, block, outputs);
    case 2:
      return run_block<2, V>(p, packed, panel, row, block, outputs);
    case 1:
      return run_block<1, V>(p, packed, panel, row, block, outputs);
    default:
      return;
  }
}

size_t packed_bytes(const KScaledLinearParams& p) { return packed_size(layout(p, nullptr, kColumns)); }

void pack(const KScaledLinearParams& p, void* memory) { pack_weights(p, memory, kColumns); }

void run(const KScaledLinearParams& p, const void* memory, void* scratch, int threads) {
  const Packed packed = layout(p, memory, kColumns);
  const bool vbmi = has_avx512_vbmi();
  run_workers(threads, TileCut(p.rows, kRows, kPanelRows, p.out_features, kOutputs), [&](int worker, auto& pieces) {
    uint8_t* panel = static_cast<uint8_t*>(scratch) + worker * worker_bytes(p);
    int64_t filled = -1;
    each_block(pieces, [&](WorkRange rows, int64_t outputs, int64_t block) {
      if (filled != rows.begin) fill_panel(p, rows, panel);
      filled = rows.begin;
      switch ((outputs + 15) / 16) {
        case 4:
          run_rows<4>(p, packed, panel, rows, block, outputs);
          break;
        case 3:
          run_rows<3>(p, packed, panel, rows, block, outputs);
          break;
        case 2:
          run_rows<2>(p, packed, panel, rows, block, outputs);
          break;
        default:
          run_rows<1>(p, packed, panel, rows, block, outputs);
          break;
      }
      look_up(p, packed, vbmi, rows, block, outputs);  // of a whole panel: a table is loaded for four rows
    });
  });
}

}  // namespace

const CpuKernels<KScaledLinearParams> kKScaledLinearAvx512 = {packed_bytes, pack, scratch_bytes, run};

}  // namespace vimtrt
