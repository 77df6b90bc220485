// CPU kernels of QuantConv1dSiLU (docs/numerics.md): one table of functions per instruction set, all
// with the same bits.
#pragma once

#include <cstddef>

#include "plugins/common/cpu_kernels.h"
#include "plugins/quant_conv1d_silu/params.h"

namespace vimtrt {

const CpuKernels<QuantConv1dSiluParams>& quant_conv1d_silu_cpu(Isa isa);

extern const CpuKernels<QuantConv1dSiluParams> kQuantConv1dSiluGeneric;
extern const CpuKernels<QuantConv1dSiluParams> kQuantConv1dSiluAvx2;
extern const CpuKernels<QuantConv1dSiluParams> kQuantConv1dSiluAvx512;
extern const CpuKernels<QuantConv1dSiluParams> kQuantConv1dSiluNeon;  // 64-bit ARM only

}  // namespace vimtrt
