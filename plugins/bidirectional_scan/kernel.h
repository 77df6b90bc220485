// The CUDA kernel of bidirectional_scan on device memory (docs/numerics.md).
#pragma once

#include <cstddef>

#include "plugins/bidirectional_scan/params.h"
#include "plugins/common/stream.h"

namespace vimtrt {

// Device memory that the launch needs beside its operands, aligned to 4: 4 B L E bytes, L and E rounded up, or 0 for
// few images of some hundred tokens. Looks at batch, tokens, channels and states alone, and does not shrink when the
// batch grows.
size_t bidirectional_scan_workspace_bytes(const BidirectionalScanParams& params);

// Starts the kernel on `stream`; asynchronous. All pointers of `params` are device memory, the floats and `workspace`
// aligned to 4, the rest as it may be. Returns 0 or a cudaError_t. Does nothing for an empty batch.
int bidirectional_scan_launch(const BidirectionalScanParams& params, cuda::Stream stream, void* workspace = nullptr);

}  // namespace vimtrt
