// BidirectionalScan as a node (docs/numerics.md), and its parameters for the kernels.
#pragma once

#include "plugins/bidirectional_scan/params.h"
#include "plugins/common/op.h"

namespace vimtrt {

const OpDef& bidirectional_scan_op();
BidirectionalScanParams bidirectional_scan_bind(const Arguments& arguments);

}  // namespace vimtrt
