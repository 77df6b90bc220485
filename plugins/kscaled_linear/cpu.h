// CPU kernels of KScaledLinear (README.md beside this file), one set per instruction set, all with the same bits.
#pragma once

#include <cstddef>

#include "plugins/common/isa.h"
#include "plugins/kscaled_linear/params.h"

namespace vimtrt {

struct KScaledLinearCpu {
  size_t (*packed_bytes)(const KScaledLinearParams& params);      // 0: run reads `weight` itself
  void (*pack)(const KScaledLinearParams& params, void* packed);  // once at load, from the constants and sizes; `packed` is 64-byte aligned
  size_t (*scratch_bytes)(const KScaledLinearParams& params, int threads);
  // Where packed_bytes is not 0, `weight` may be null by now.
  void (*run)(const KScaledLinearParams& params, const void* packed, void* scratch, int threads);
};

// `isa` must be one of available_isas().
const KScaledLinearCpu& kscaled_linear_cpu(Isa isa);

extern const KScaledLinearCpu kKScaledLinearGeneric;
extern const KScaledLinearCpu kKScaledLinearAvx2;     // x86 only
extern const KScaledLinearCpu kKScaledLinearAvxVnni;  // x86 only
extern const KScaledLinearCpu kKScaledLinearAvx512;   // x86 only
extern const KScaledLinearCpu kKScaledLinearNeon;     // 64-bit ARM only
extern const KScaledLinearCpu kKScaledLinearAmx;      // x86 only

}  // namespace vimtrt
