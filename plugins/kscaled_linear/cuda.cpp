#include "plugins/common/cuda_operator.h"
#include "plugins/kscaled_linear/kernel.h"
#include "plugins/kscaled_linear/op.h"

namespace vimtrt {

const CudaOperator& kscaled_linear_cuda_operator() {
  static const CudaOperator table =
      cuda_operator_with_pairs<KScaledLinearParams, kscaled_linear_bind, kscaled_linear_launch, kscaled_linear_can_pair,
                               kscaled_linear_launch_pair>();
  return table;
}

}  // namespace vimtrt
