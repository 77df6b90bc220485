#include "plugins/add_layer_norm_quant/cpu.h"

#include "plugins/add_layer_norm_quant/op.h"
#include "plugins/common/cpu_operator.h"

namespace vimtrt {

const CpuKernels<AddLayerNormQuantParams>& add_layer_norm_quant_cpu(Isa isa) {
#if VIMTRT_X86
  static const CpuKernelTable<AddLayerNormQuantParams> table = {
      &kAddLayerNormQuantGeneric, nullptr, &kAddLayerNormQuantAvx2, nullptr, &kAddLayerNormQuantAvx512, nullptr};
#elif VIMTRT_AARCH64
  static const CpuKernelTable<AddLayerNormQuantParams> table = {
      &kAddLayerNormQuantGeneric, &kAddLayerNormQuantNeon, nullptr, nullptr, nullptr, nullptr};
#else
  static const CpuKernelTable<AddLayerNormQuantParams> table = {
      &kAddLayerNormQuantGeneric, nullptr, nullptr, nullptr, nullptr, nullptr};
#endif
  return table[isa];
}

const CpuOperator& add_layer_norm_quant_cpu_operator() {
  static const CpuOperator table =
      cpu_operator<AddLayerNormQuantParams, add_layer_norm_quant_bind, add_layer_norm_quant_cpu>();
  return table;
}

}  // namespace vimtrt
