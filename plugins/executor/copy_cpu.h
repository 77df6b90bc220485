// The copies between operators, on the CPU: strided N-dimensional copy and gather along one axis.
#pragma once

#include <cstdint>

#include "plugins/executor/copy.h"

namespace vimtrt {

// `copy` is simplified. A sample of x has src_sample_bytes.
void strided_copy(const StridedCopy& copy, int64_t batch, int64_t src_sample_bytes, const uint8_t* x, uint8_t* y,
                  int threads);

// y[o, j] = x[o, indices[j]] with x [outer, axis_length, inner_bytes]; the batch is part of outer.
void gather(int64_t outer, int64_t axis_length, int64_t inner_bytes, const int64_t* indices, int64_t count,
            const uint8_t* x, uint8_t* y, int threads);

}  // namespace vimtrt
