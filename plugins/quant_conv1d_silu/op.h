// QuantConv1dSiLU as a node (docs/numerics.md), and its parameters for the kernels.
#pragma once

#include "plugins/common/op.h"
#include "plugins/quant_conv1d_silu/params.h"

namespace vimtrt {

const OpDef& quant_conv1d_silu_op();
QuantConv1dSiluParams quant_conv1d_silu_bind(const Arguments& arguments);

}  // namespace vimtrt
