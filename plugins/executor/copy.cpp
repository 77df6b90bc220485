#include "plugins/executor/copy.h"

namespace vimtrt {

StridedCopy simplify(const StridedCopy& copy) {
  StridedCopy simple;
  simple.element_bytes = copy.element_bytes;
  simple.src_offset = copy.src_offset;
  for (size_t d = 0; d < copy.shape.size(); ++d) {
    if (copy.shape[d] == 1) continue;
    if (!simple.shape.empty() && simple.src_strides.back() == copy.shape[d] * copy.src_strides[d]) {
      simple.shape.back() *= copy.shape[d];
      simple.src_strides.back() = copy.src_strides[d];
    } else {
      simple.shape.push_back(copy.shape[d]);
      simple.src_strides.push_back(copy.src_strides[d]);
    }
  }
  // Contiguous elements become one larger element; strides and offset are then counted in bytes, as elements of the old
  // size need not divide.
  int64_t run = 1;
  if (!simple.shape.empty() && simple.src_strides.back() == 1) {
    run = simple.shape.back();
    simple.shape.pop_back();
    simple.src_strides.pop_back();
  }
  for (int64_t& stride : simple.src_strides) stride *= copy.element_bytes;
  simple.src_offset *= copy.element_bytes;
  simple.element_bytes *= run;
  if (simple.shape.empty()) {
    simple.shape.push_back(1);
    simple.src_strides.push_back(0);
  }
  return simple;
}

}  // namespace vimtrt
