// The strided N-dimensional copy between operators.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace vimtrt {

struct StridedCopy {
  int64_t element_bytes = 0;
  std::vector<int64_t> shape;
  std::vector<int64_t> src_strides;  // in elements
  int64_t src_offset = 0;            // in elements
};

// The same copy with as few dimensions as possible and at least one; where the last dimension is contiguous,
// it becomes the element.
StridedCopy simplify(const StridedCopy& copy);

}  // namespace vimtrt
