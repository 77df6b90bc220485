// KScaledLinear in plain C++, and the choice between the instruction sets.
#include <cmath>

#include "plugins/common/numerics.h"
#include "plugins/common/threads.h"
#include "plugins/kscaled_linear/cpu.h"

namespace vimtrt {
namespace {

int32_t dot(const int8_t* x, const int8_t* w, int32_t count) {
  int32_t sum = 0;
  for (int32_t c = 0; c < count; ++c) sum += static_cast<int32_t>(x[c]) * static_cast<int32_t>(w[c]);
  return sum;
}

void run_tile(const KScaledLinearParams& p, const WorkTile& tile) {
  for (int64_t row = tile.rows.begin; row < tile.rows.end; ++row) {
    const int64_t token = row % p.tokens;
    const int8_t* x = p.x + row * p.x_stride;
    for (int64_t o = tile.columns.begin; o < tile.columns.end; ++o) {
      const float acc = static_cast<float>(dot(x, p.weight + o * p.in_features, p.in_features));
      const float v = std::fma(acc * p.token_scale[token], p.channel_scale[o], p.bias[o]);
      const float w = v * p.out_token_scale[token];
      const int64_t at = row * p.out_features + o;
      if (p.y_float != nullptr) {
        p.y_float[at] = w;
        continue;
      }
      const int8_t q = quantize_s8(w);
      const int32_t id = p.table != nullptr ? p.table_id[o] : -1;
      p.y_int8[at] = id >= 0 ? p.table[static_cast<int64_t>(id) * 256 + q + 128] : q;
    }
  }
}

void run(const KScaledLinearParams& p, const void*, void*, int threads) {
  run_workers(threads, TileCut(p.rows, 1, 1, p.out_features, 64), [&](int, auto& pieces) {
    for (WorkTile tile; pieces.next(tile);) run_tile(p, tile);
  });
}

}  // namespace

const CpuKernels<KScaledLinearParams> kKScaledLinearGeneric = {no_packed_bytes, no_pack, no_scratch_bytes, run};

}  // namespace vimtrt
