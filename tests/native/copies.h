// The copies of a network between its operators, on device memory: what TensorRT's own layers do for an engine, the
// tests need for theirs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "plugins/common/stream.h"

namespace vimtrt {
namespace test {

// y[i0, .., in] = x[i0 * strides[0] + .. + in * strides[n]], y of `shape` and without gaps; up to 8 dimensions, strides
// and sizes in elements. Asynchronous; returns 0 or a cudaError_t. Fewer than 2^32 elements.
int strided_copy_launch(const void* x, void* y, size_t element_bytes, const std::vector<int64_t>& shape,
                        const std::vector<int64_t>& strides, cuda::Stream stream);

// y[o, i, :] = x[o, indices[i], :] for o < outer, i < count; rows of `inner_bytes` bytes, x of [outer, length,
// inner_bytes]; `indices` in device memory. Asynchronous; returns 0 or a cudaError_t. Fewer than 2^32 units.
int gather_launch(const void* x, void* y, const int64_t* indices, int64_t outer, int64_t length, int64_t count,
                  int64_t inner_bytes, cuda::Stream stream);

}  // namespace test
}  // namespace vimtrt
