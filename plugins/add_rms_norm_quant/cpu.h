// CPU kernels of AddRMSNormQuant (README.md beside this file), one set per instruction set, all with the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plugins/add_rms_norm_quant/params.h"
#include "plugins/common/isa.h"

namespace vimtrt {

struct AddRmsNormQuantCpu {
  size_t (*packed_bytes)(const AddRmsNormQuantParams& params);  // always 0: nothing to pack
  void (*pack)(const AddRmsNormQuantParams& params, void* packed);
  size_t (*scratch_bytes)(const AddRmsNormQuantParams& params, int threads);
  void (*run)(const AddRmsNormQuantParams& params, const void* packed, void* scratch, int threads);
};

constexpr int64_t kPieceRows = 16;  // that a thread takes at a time: some microseconds

// `isa` must be one of available_isas().
const AddRmsNormQuantCpu& add_rms_norm_quant_cpu(Isa isa);

extern const AddRmsNormQuantCpu kAddRmsNormQuantGeneric;
extern const AddRmsNormQuantCpu kAddRmsNormQuantAvx2;    // x86 only
extern const AddRmsNormQuantCpu kAddRmsNormQuantAvx512;  // x86 only
extern const AddRmsNormQuantCpu kAddRmsNormQuantNeon;    // 64-bit ARM only

}  // namespace vimtrt
