// CPU kernels of AddLayerNormQuant (README.md beside this file), one set per instruction set, all with the same bits.
#pragma once

#include <cstddef>

#include "plugins/add_layer_norm_quant/params.h"
#include "plugins/common/cpu_kernels.h"

namespace vimtrt {

// `isa` must be one of available_isas().
const CpuKernels<AddLayerNormQuantParams>& add_layer_norm_quant_cpu(Isa isa);

extern const CpuKernels<AddLayerNormQuantParams> kAddLayerNormQuantGeneric;
extern const CpuKernels<AddLayerNormQuantParams> kAddLayerNormQuantAvx2;    // x86 only
extern const CpuKernels<AddLayerNormQuantParams> kAddLayerNormQuantAvx512;  // x86 only
extern const CpuKernels<AddLayerNormQuantParams> kAddLayerNormQuantNeon;    // 64-bit ARM only

}  // namespace vimtrt
