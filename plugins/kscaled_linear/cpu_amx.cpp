// KScaledLinear with AMX: tiles of 16 rows by 64 columns of x against 64 columns by 16 outputs of the weights, 16 rows
// by 64 outputs in four accumulators.
//
// The multiplication of a block and the epilogue of the block before it run side by side: tile instructions wait in
// their own unit while the epilogue's vectors pass. x goes into tiles of its own first, rows and columns filled up with
// zeros, so no load reaches outside it.
#include "plugins/kscaled_linear/cpu_avx512.h"

namespace vimtrt {
namespace {

constexpr int kRows = 16;
constexpr int kColumns = 64;
constexpr int64_t kTileBytes = kRows * kColumns;
constexpr int64_t kPanelRows = 16 * kRows;

size_t packed_bytes(const KScaledLinearParams& p) { return packed_size(layout(p, nullptr, kColumns)); }

void pack(const KScaledLinearParams& p, void* memory) { pack_weights(p, memory, kColumns); }

int64_t worker_bytes(const KScaledLinearParams& p) {
  const int64_t rows = round_up(p.rows < kPanelRows ? p.rows : kPanelRows, kRows);
  return rows * round_up(p.in_features, kColumns);
}

size_t scratch_bytes(const KScaledLinearParams& p, int threads) {
  return static_cast<size_t>(worker_bytes(p)) * static_cast<size_t>(threads);
}

// tiles [row blocks, column blocks, 16, 64] of rows of x.
void fill_tiles(const KScaledLinearParams& p, WorkRange rows, int8_t* tiles) {
  const int64_t depth = round_up(p.in_features, kColumns) / kColumns;
  for (int64_t row = rows.begin; row < round_up(rows.end - rows.begin, kRows) + rows.begin; ++row) {
    const int64_t r = row - rows.begin;
    int8_t* target = tiles + r / kRows * depth * kTileBytes + r % kRows * kColumns;
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t left = row < rows.end ? p.in_features - k * kColumns : 0;
      const __mmask64 mask = left >= kColumns ? ~0ull : (1ull << left) - 1;
      _mm512_store_si512(target + k * kTileBytes, _mm512_maskz_loadu_epi8(mask, p.x + row * p.x_stride + k * kColumns));
    }
  }
}

struct TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64, "as the processor reads it");
const TileConfig kTileConfig;  // in memory: GCC 12 believes that the instruction reads eight bytes of it

// sums [4, 16, 16] = 16 rows of x times 64 outputs of the weights; the last V tiles of outputs exist.
template <int V>
void multiply(const int8_t* x, const int8_t* weight, int64_t depth, int32_t* sums) {
  _tile_zero(0);
  if constexpr (V > 1) _tile_zero(1);
  if constexpr (V > 2) _tile_zero(2);
  if constexpr (V > 3) _tile_zero(3);
  constexpr int64_t kStride = kOutputs * 4;  // of the weights' quads
  for (int64_t k = 0; k < depth; ++k, x += kTileBytes, weight += kColumns * kOutputs) {
    _tile_loadd(4, x, kColumns);
    _tile_loadd(5, weight, kStride);
    _tile_dpbssd(0, 4, 5);
    if constexpr (V > 1) {
      _tile_loadd(6, weight + 64, kStride);
      _tile_dpbssd(1, 4, 6);
    }
    if constexpr (V > 2) {
      _tile_loadd(7, weight + 128, kStride);
      _tile_dpbssd(2, 4, 7);
    }
    if constexpr (V > 3) {
      _tile_loadd(5, weight + 192, kStride);
      _tile_dpbssd(3, 4, 5);
    }
  }
  _tile_stored(0, sums, 64);
  if constexpr (V > 1) _tile_stored(1, sums + 256, 64);
  if constexpr (V > 2) _tile_stored(2, sums + 512, 64);
  if constexpr (V > 3) _tile_stored(3, sums + 768, 64);
}

// The epilogue of a tile of `rows` by V * 16 outputs.
template <int V>
void finish(const KScaledLinearParams& p, const Packed& packed, bool vbmi, const int32_t* sums, WorkRange rows,
            int64_t block, int64_t outputs) {
  int64_t token = rows.begin % p.tokens;
  for (int64_t row = rows.begin; row < rows.end; ++row, sums += 16) {
    const auto sum = [&](auto v) VIMTRT_ALWAYS_INLINE { return _mm512_load_si512(sums + 256 * v); };
    finish_row<V>(p, packed, row, token, block * kOutputs, outputs, sum);
    if (++token == p.tokens) token = 0;
  }
  look_up(p, packed, vbmi, rows, block, outputs);
}

template <int V>
void run_rows(const KScaledLinearParams& p, const Packed& packed, bool vbmi, const int8_t* tiles, WorkRange rows,
              int64_t block, int64_t outputs) {
  alignas(64) int32_t sums[2][4 * 256];
  const int64_t depth = packed.quads / 16;
  const int8_t* weight = packed.weight + block * packed.quads * kOutputs * 4;
  int64_t row = rows.begin;
  multiply<V>(tiles, weight, depth, sums[0]);
  for (int at = 0; row < rows.end; row += kRows, at ^= 1) {
    tiles += depth * kTileBytes;
    if (row + kRows < rows.end) multiply<V>(tiles, weight, depth, sums[at ^ 1]);
    const WorkRange tile = {row, rows.end - row < kRows ? rows.end : row + kRows};
    finish<V>(p, packed, vbmi, sums[at], tile, block, outputs);
  }
}

void run(const KScaledLinearParams& p, const void* memory, void* scratch, int threads) {
  const Packed packed = layout(p, memory, kColumns);
  const bool vbmi = has_avx512_vbmi();
  run_workers(threads, TileCut(p.rows, kRows, kPanelRows, p.out_features, kOutputs), [&](int worker, auto& pieces) {
    int8_t* tiles = static_cast<int8_t*>(scratch) + worker * worker_bytes(p);
    int64_t filled = -1;
    _tile_loadconfig(&kTileConfig);
    each_block(pieces, [&](WorkRange rows, int64_t outputs, int64_t block) {
      if (filled != rows.begin) fill_tiles(p, rows, tiles);
      filled = rows.begin;
      switch ((outputs + 15) / 16) {
        case 4:
          return run_rows<4>(p, packed, vbmi, tiles, rows, block, outputs);
        case 3:
          return run_rows<3>(p, packed, vbmi, tiles, rows, block, outputs);
        case 2:
          return run_rows<2>(p, packed, vbmi, tiles, rows, block, outputs);
        default:
          return run_rows<1>(p, packed, vbmi, tiles, rows, block, outputs);
      }
    });
    _tile_release();
  });
}

}  // namespace

const CpuKernels<KScaledLinearParams> kKScaledLinearAmx = {packed_bytes, pack, scratch_bytes, run};

}  // namespace vimtrt
