#include "plugins/kscaled_linear/cpu.h"

#include "plugins/common/cpu_operator.h"
#include "plugins/kscaled_linear/op.h"

namespace vimtrt {

const CpuKernels<KScaledLinearParams>& kscaled_linear_cpu(Isa isa) {
#if VIMTRT_X86
  static const CpuKernelTable<KScaledLinearParams> table = {&kKScaledLinearGeneric, nullptr,
                                                            &kKScaledLinearAvx2,    &kKScaledLinearAvxVnni,
                                                            &kKScaledLinearAvx512,  &kKScaledLinearAmx};
#elif VIMTRT_AARCH64
  static const CpuKernelTable<KScaledLinearParams> table = {
      &kKScaledLinearGeneric, &kKScaledLinearNeon, nullptr, nullptr, nullptr, nullptr};
#else
  static const CpuKernelTable<KScaledLinearParams> table = {
      &kKScaledLinearGeneric, nullptr, nullptr, nullptr, nullptr, nullptr};
#endif
  return table[isa];
}

const CpuOperator& kscaled_linear_cpu_operator() {
  static const CpuOperator table = cpu_operator<KScaledLinearParams, kscaled_linear_bind, kscaled_linear_cpu>();
  return table;
}

}  // namespace vimtrt
