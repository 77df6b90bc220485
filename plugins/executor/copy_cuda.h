// The copies between operators, on device memory: strided N-dimensional copy and gather along one axis.
#pragma once

#include <cstdint>

#include "plugins/common/stream.h"
#include "plugins/executor/copy.h"

namespace vimtrt {

// Of a simplified copy: more than any permutation of images in patches has.
constexpr size_t kMostCopyDimensions = 8;

// `copy` is simplified, with at most kMostCopyDimensions. A sample of x has src_sample_bytes. Asynchronous; returns 0
// or a cudaError_t.
int strided_copy_launch(const StridedCopy& copy, int64_t batch, int64_t src_sample_bytes, const uint8_t* x, uint8_t* y,
                        cuda::Stream stream);

// y[o, j] = x[o, indices[j]] with x [outer, axis_length, inner_bytes], indices in device memory; the batch is part of
// outer. Asynchronous; returns 0 or a cudaError_t.
int gather_launch(int64_t outer, int64_t axis_length, int64_t inner_bytes, const int64_t* indices, int64_t count,
                  const uint8_t* x, uint8_t* y, cuda::Stream stream);

}  // namespace vimtrt
