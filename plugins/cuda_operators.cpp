#include "plugins/common/cuda_operator.h"
#include "plugins/operators.h"

namespace vimtrt {

#define VIMTRT_OPERATOR(folder) const CudaOperator& folder##_cuda_operator();
#include "plugins/operators.inc"
#undef VIMTRT_OPERATOR

const CudaOperator& cuda_operator_of(const OpDef& op) {
#define VIMTRT_OPERATOR(folder) \
  if (op.stem == #folder) return folder##_cuda_operator();
#include "plugins/operators.inc"
#undef VIMTRT_OPERATOR
  throw OpError("there is no operator " + op.name);
}

}  // namespace vimtrt
