#include "plugins/add_layer_norm_quant/kernel.h"
#include "plugins/add_layer_norm_quant/op.h"
#include "plugins/common/cuda_operator.h"

namespace vimtrt {

const CudaOperator& add_layer_norm_quant_cuda_operator() {
  static const CudaOperator table =
      cuda_operator<AddLayerNormQuantParams, add_layer_norm_quant_bind, add_layer_norm_quant_launch>();
  return table;
}

}  // namespace vimtrt
