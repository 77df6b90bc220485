// AddLayerNormQuant as a node (docs/numerics.md), and its parameters for the kernels.
#pragma once

#include "plugins/add_layer_norm_quant/params.h"
#include "plugins/common/op.h"

namespace vimtrt {

const OpDef& add_layer_norm_quant_op();
AddLayerNormQuantParams add_layer_norm_quant_bind(const Arguments& arguments);

}  // namespace vimtrt
