// KScaledLinear with AVX-512 VNNI: 6 rows by 64 outputs in 24 accumulators, the epilogue in the same registers.
#include "plugins/kscaled_linear/cpu_avx512.h"

namespace vimtrt {
namespace {

constexpr int kRows = 6;
// Rows between two changes of the block of outputs: their x stays in the second-level cache while every block passes over it.
constexpr int64_t kPanelRows = 16 * kRows;
constexpr int64_t kColumns = 4;  // that C is rounded up to

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

  const bool looks_up = lookup != nullptr;
  alignas(64) int8_t tile[kRows * kOutputs];
  int64_t token = row % p.tokens;
  unroll<R>([&](auto r) VIMTRT_ALWAYS_INLINE {
    const auto sum = [&](auto v) VIMTRT_ALWAYS_INLINE { return acc[r][v]; };
    finish_row<V>(p, packed, row + r, token, first_output, outputs, looks_up ? tile + r * kOutputs : nullptr, sum);
    if (++token == p.tokens) token = 0;
  });
  if (looks_up) finish_tile(p, lookup, row, R, first_output, outputs, tile);
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

size_t packed_bytes(const KScaledLinearParams& p) { return packed_size(layout(p, nullptr, kColumns)); }

void pack(const KScaledLinearParams& p, void* memory) { pack_weights(p, memory, kColumns); }

size_t no_scratch(const KScaledLinearParams&, int) { return 0; }

void run(const KScaledLinearParams& p, const void* memory, void*, int threads) {
  const Packed packed = layout(p, memory, kColumns);
  const Lookup lookup = find_lookup(p);
  run_workers(threads, [&](int worker, int workers) {
    each_block(p, kRows, kPanelRows, worker, workers, [&](WorkRange rows, int64_t outputs, int64_t block) {
      switch ((outputs + 15) / 16) {
        case 4:
          return run_rows<4>(p, packed, lookup, rows, block, outputs);
        case 3:
          return run_rows<3>(p, packed, lookup, rows, block, outputs);
        case 2:
          return run_rows<2>(p, packed, lookup, rows, block, outputs);
        default:
          return run_rows<1>(p, packed, lookup, rows, block, outputs);
      }
    });
  });
}

}  // namespace

const KScaledLinearCpu kKScaledLinearAvx512 = {packed_bytes, pack, no_scratch, run};

}  // namespace vimtrt
