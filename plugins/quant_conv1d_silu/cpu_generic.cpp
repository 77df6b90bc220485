// QuantConv1dSiLU as docs/numerics.md writes it.
#include <cmath>

#include "plugins/common/numerics.h"
#include "plugins/common/threads.h"
#include "plugins/quant_conv1d_silu/cpu.h"

namespace vimtrt {
namespace {

constexpr int kWidth = 4;

size_t no_packed_bytes(const QuantConv1dSiluParams&) { return 0; }

void no_pack(const QuantConv1dSiluParams&, void*) {}

size_t no_scratch_bytes(const QuantConv1dSiluParams&, int) { return 0; }

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

const QuantConv1dSiluCpu kQuantConv1dSiluGeneric = {no_packed_bytes, no_pack, no_scratch_bytes, run};

const QuantConv1dSiluCpu& quant_conv1d_silu_cpu(Isa isa) {
#if VIMTRT_X86
  if (isa == Isa::kAvx512 || isa == Isa::kAmx) return kQuantConv1dSiluAvx512;
  if (isa == Isa::kAvx2 || isa == Isa::kAvxVnni) return kQuantConv1dSiluAvx2;
#elif VIMTRT_AARCH64
  if (isa == Isa::kNeon) return kQuantConv1dSiluNeon;
#endif
  (void)isa;
  return kQuantConv1dSiluGeneric;
}

}  // namespace vimtrt
