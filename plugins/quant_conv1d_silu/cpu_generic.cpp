// QuantConv1dSiLU as docs/numerics.md writes it.
#include <cmath>

#include "plugins/common/numerics.h"
#include "plugins/common/threads.h"
#include "plugins/quant_conv1d_silu/cpu.h"

namespace vimtrt {
namespace {

constexpr int kWidth = 4;

void run(const QuantConv1dSiluParams& p, const void*, void*, int threads) {
  const int64_t L = p.tokens, E = p.channels;
  run_workers(threads, RangeCut(p.batch * L, 1), [&](int, auto& pieces) {
    for (WorkRange rows; pieces.next(rows);) {
      const int64_t row = rows.begin;
      const int64_t image = row / L, t = row % L;
      for (int d = 0; d < 2; ++d) {
        for (int64_t e = 0; e < E; ++e) {
          const int8_t* weight = p.weight + (d * E + e) * kWidth;
          int32_t acc = 0;
          for (int j = 0; j < kWidth; ++j) {
            const int64_t source = d == 0 ? t - 3 + j : t + 3 - j;
            if (source >= 0 && source < L) acc += p.x[(image * L + source) * p.x_stride + e] * weight[j];
          }
          const int q = quantize_s8(std::fma(static_cast<float>(acc), p.channel_scale[d * E + e], p.bias[d * E + e]));
          p.u[d][row * E + e] = p.table[p.table_id[d * E + e] * 256 + q + 128];
        }
      }
    }
  });
}

}  // namespace

const CpuKernels<QuantConv1dSiluParams> kQuantConv1dSiluGeneric = {no_packed_bytes, no_pack, no_scratch_bytes, run};

}  // namespace vimtrt
