#include "plugins/quant_conv1d_silu/cpu.h"

#include "plugins/common/cpu_operator.h"
#include "plugins/quant_conv1d_silu/op.h"

namespace vimtrt {

const CpuKernels<QuantConv1dSiluParams>& quant_conv1d_silu_cpu(Isa isa) {
#if VIMTRT_X86
  static const CpuKernelTable<QuantConv1dSiluParams> table = {
      &kQuantConv1dSiluGeneric, nullptr, &kQuantConv1dSiluAvx2, nullptr, &kQuantConv1dSiluAvx512, nullptr};
#elif VIMTRT_AARCH64
  static const CpuKernelTable<QuantConv1dSiluParams> table = {
      &kQuantConv1dSiluGeneric, &kQuantConv1dSiluNeon, nullptr, nullptr, nullptr, nullptr};
#else
  static const CpuKernelTable<QuantConv1dSiluParams> table = {
      &kQuantConv1dSiluGeneric, nullptr, nullptr, nullptr, nullptr, nullptr};
#endif
  return table[isa];
}

const CpuOperator& quant_conv1d_silu_cpu_operator() {
  static const CpuOperator table = cpu_operator<QuantConv1dSiluParams, quant_conv1d_silu_bind, quant_conv1d_silu_cpu>();
  return table;
}

}  // namespace vimtrt
