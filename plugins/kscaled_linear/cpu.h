// CPU kernels of KScaledLinear (README.md beside this file), one set per instruction set, all with the same bits.
#pragma once

#include <cstddef>

#include "plugins/common/cpu_kernels.h"
#include "plugins/kscaled_linear/params.h"

namespace vimtrt {

// `isa` must be one of available_isas().
const CpuKernels<KScaledLinearParams>& kscaled_linear_cpu(Isa isa);

extern const CpuKernels<KScaledLinearParams> kKScaledLinearGeneric;
extern const CpuKernels<KScaledLinearParams> kKScaledLinearAvx2;     // x86 only
extern const CpuKernels<KScaledLinearParams> kKScaledLinearAvxVnni;  // x86 only
extern const CpuKernels<KScaledLinearParams> kKScaledLinearAvx512;   // x86 only
extern const CpuKernels<KScaledLinearParams> kKScaledLinearNeon;     // 64-bit ARM only
extern const CpuKernels<KScaledLinearParams> kKScaledLinearAmx;      // x86 only

}  // namespace vimtrt
