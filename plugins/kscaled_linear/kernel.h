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

// The same for two at once, of which there is one launch for kSmall and kFlat.
KScaledLinearTile kscaled_linear_pair_tile(const KScaledLinearParams& params, int processors);

// Whether two products of int8 differ in nothing but what they point to, as far as that is known: pointers may be null.
bool kscaled_linear_can_pair(const KScaledLinearParams& a, const KScaledLinearParams& b);

// Starts two products, neither of which reads what the other writes: in one launch where they can be paired and one
// alone would not fill the GPU, else in two.
int kscaled_linear_launch_pair(const KScaledLinearParams& a, const KScaledLinearParams& b, cuda::Stream stream);

}  // namespace vimtrt
