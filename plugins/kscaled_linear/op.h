// KScaledLinear as a node (docs/numerics.md), and its parameters for the kernels.
#pragma once

#include "plugins/common/op.h"
#include "plugins/kscaled_linear/params.h"

namespace vimtrt {

const OpDef& kscaled_linear_op();
KScaledLinearParams kscaled_linear_bind(const Arguments& arguments);

}  // namespace vimtrt
