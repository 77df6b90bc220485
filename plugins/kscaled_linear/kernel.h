// The CUDA kernel of kscaled_linear on device memory (docs/numerics.md).
#pragma once

#include "plugins/common/stream.h"
#include "plugins/kscaled_linear/params.h"

namespace vimtrt {

// Starts the kernel on `stream`; asynchronous. All pointers of `params` are device memory. Returns 0 or a cudaError_t. Does nothing for an
// empty batch.
int kscaled_linear_launch(const KScaledLinearParams& params, cuda::Stream stream);

}  // namespace vimtrt
