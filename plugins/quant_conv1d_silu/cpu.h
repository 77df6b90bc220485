// CPU kernels of QuantConv1dSiLU (docs/numerics.md): one table of functions per instruction set, all with the same bits.
#pragma once

#include <cstddef>

#include "plugins/common/isa.h"
#include "plugins/quant_conv1d_silu/params.h"

namespace vimtrt {

// `packed` and `scratch` are 64-byte aligned. Packing reads every field but batch and the activations.
struct QuantConv1dSiluCpu {
  size_t (*packed_bytes)(const QuantConv1dSiluParams& params);
  void (*pack)(const QuantConv1dSiluParams& params, void* packed);
  size_t (*scratch_bytes)(const QuantConv1dSiluParams& params, int threads);
  void (*run)(const QuantConv1dSiluParams& params, const void* packed, void* scratch, int threads);
};

const QuantConv1dSiluCpu& quant_conv1d_silu_cpu(Isa isa);

extern const QuantConv1dSiluCpu kQuantConv1dSiluGeneric;
extern const QuantConv1dSiluCpu kQuantConv1dSiluAvx2;
extern const QuantConv1dSiluCpu kQuantConv1dSiluAvx512;
extern const QuantConv1dSiluCpu kQuantConv1dSiluNeon;  // 64-bit ARM only

}  // namespace vimtrt
