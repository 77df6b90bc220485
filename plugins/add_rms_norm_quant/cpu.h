// CPU kernels of AddRMSNormQuant (README.md beside this file), one set per instruction set, all with the same bits.
#pragma once

#include <cstddef>

#include "plugins/add_rms_norm_quant/params.h"
#include "plugins/common/cpu_kernels.h"

namespace vimtrt {

// `isa` must be one of available_isas().
const CpuKernels<AddRmsNormQuantParams>& add_rms_norm_quant_cpu(Isa isa);

extern const CpuKernels<AddRmsNormQuantParams> kAddRmsNormQuantGeneric;
extern const CpuKernels<AddRmsNormQuantParams> kAddRmsNormQuantAvx2;    // x86 only
extern const CpuKernels<AddRmsNormQuantParams> kAddRmsNormQuantAvx512;  // x86 only
extern const CpuKernels<AddRmsNormQuantParams> kAddRmsNormQuantNeon;    // 64-bit ARM only

}  // namespace vimtrt
