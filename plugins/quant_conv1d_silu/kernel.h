// The CUDA kernel of quant_conv1d_silu on device memory (docs/numerics.md).
#pragma once

#include "plugins/common/stream.h"
#include "plugins/quant_conv1d_silu/params.h"

namespace vimtrt {

// Starts the kernel on `stream`; asynchronous. All pointers of `params` are device memory. Returns 0 or a cudaError_t.
// Does nothing for an empty batch.
int quant_conv1d_silu_launch(const QuantConv1dSiluParams& params, cuda::Stream stream);

}  // namespace vimtrt
