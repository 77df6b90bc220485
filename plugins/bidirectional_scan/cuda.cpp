#include "plugins/bidirectional_scan/kernel.h"
#include "plugins/bidirectional_scan/op.h"
#include "plugins/common/cuda_operator.h"

namespace vimtrt {

const CudaOperator& bidirectional_scan_cuda_operator() {
  static const CudaOperator table =
      cuda_operator_with_workspace<BidirectionalScanParams, bidirectional_scan_bind, bidirectional_scan_workspace_bytes,
                                   bidirectional_scan_launch>();
  return table;
}

}  // namespace vimtrt
