// The CUDA kernel of add_layer_norm_quant on device memory (docs/numerics.md).
#pragma once

#include "plugins/add_layer_norm_quant/params.h"
#include "plugins/common/stream.h"

namespace vimtrt {

// Starts the kernel on `stream`; asynchronous. All pointers of `params` are device memory. Returns 0 or a cudaError_t.
// Does nothing for an empty batch.
int add_layer_norm_quant_launch(const AddLayerNormQuantParams& params, cuda::Stream stream);

}  // namespace vimtrt
