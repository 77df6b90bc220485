// The CUDA kernel of kscaled_linear on device memory (docs/numerics.md).
#pragma once

#include "plugins/common/stream.h"
#include "plugins/kscaled_linear/params.h"

namespace vimtrt {

enum class KScaledLinearTile { kSmall, kFlat, kMedium, kLarge };

// The part of the output that a block computes, as a launch chooses it on a GPU of so many processors. Which one it is
// changes no result.
KScaledLinearTile kscaled_linear_tile(const KScaledLinearParams& params, int processors);

// Starts the kernel on `stream`; asynchronous. All pointers of `params` are device memory. Returns 0 or a cudaError_t.
// Does nothing for an empty batch.
int kscaled_linear_launch(const KScaledLinearParams& params, cuda::Stream stream);

// The same with a tile of the caller's choice.
int kscaled_linear_launch_tile(const KScaledLinearParams& params, KScaledLinearTile tile, cuda::Stream stream);

}  // namespace vimtrt
