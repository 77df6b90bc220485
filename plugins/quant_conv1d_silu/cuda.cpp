#include "plugins/common/cuda_operator.h"
#include "plugins/quant_conv1d_silu/kernel.h"
#include "plugins/quant_conv1d_silu/op.h"

namespace vimtrt {

const CudaOperator& quant_conv1d_silu_cuda_operator() {
  static const CudaOperator table =
      cuda_operator<QuantConv1dSiluParams, quant_conv1d_silu_bind, quant_conv1d_silu_launch>();
  return table;
}

}  // namespace vimtrt
