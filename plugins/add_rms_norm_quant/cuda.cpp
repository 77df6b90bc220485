#include "plugins/add_rms_norm_quant/kernel.h"
#include "plugins/add_rms_norm_quant/op.h"
#include "plugins/common/cuda_operator.h"

namespace vimtrt {

const CudaOperator& add_rms_norm_quant_cuda_operator() {
  static const CudaOperator table =
      cuda_operator<AddRmsNormQuantParams, add_rms_norm_quant_bind, add_rms_norm_quant_launch>();
  return table;
}

}  // namespace vimtrt
