#include "plugins/add_rms_norm_quant/cpu.h"

#include "plugins/add_rms_norm_quant/op.h"
#include "plugins/common/cpu_operator.h"

namespace vimtrt {

const CpuKernels<AddRmsNormQuantParams>& add_rms_norm_quant_cpu(Isa isa) {
#if VIMTRT_X86
  static const CpuKernelTable<AddRmsNormQuantParams> table = {
      &kAddRmsNormQuantGeneric, nullptr, &kAddRmsNormQuantAvx2, nullptr, &kAddRmsNormQuantAvx512, nullptr};
#elif VIMTRT_AARCH64
  static const CpuKernelTable<AddRmsNormQuantParams> table = {
      &kAddRmsNormQuantGeneric, &kAddRmsNormQuantNeon, nullptr, nullptr, nullptr, nullptr};
#else
  static const CpuKernelTable<AddRmsNormQuantParams> table = {
      &kAddRmsNormQuantGeneric, nullptr, nullptr, nullptr, nullptr, nullptr};
#endif
  return table[isa];
}

const CpuOperator& add_rms_norm_quant_cpu_operator() {
  static const CpuOperator table =
      cpu_operator<AddRmsNormQuantParams, add_rms_norm_quant_bind, add_rms_norm_quant_cpu>();
  return table;
}

}  // namespace vimtrt
