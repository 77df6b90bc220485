// What launchers share: sizes of grids, launches beyond a grid's limits, and the widths of copies.
#pragma once

#include <algorithm>
#include <cstdint>

namespace vimtrt {
namespace cuda {

// Blocks of a grid.
constexpr int64_t kMaxGridX = 2147483647;
constexpr int64_t kMaxGridY = 65535;

constexpr int64_t ceil_div(int64_t count, int64_t divisor) { return (count + divisor - 1) / divisor; }

// Calls launch(first, count) for `total` items, `most` at a time, until one returns something other than 0; returns
// that, or 0.
template <class Launch>
int launch_in_parts(int64_t total, int64_t most, const Launch& launch) {
  for (int64_t first = 0; first < total; first += most) {
    const int status = launch(first, std::min(total - first, most));
    if (status != 0) return status;
  }
  return 0;
}

inline uint64_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

// The bytes that can be moved at once (cuda_copies.h): the largest of 16, 8, 4 that divides every address and stride
// that is or-ed into `bits`; otherwise 1.
inline int width_of(uint64_t bits) { return bits % 16 == 0 ? 16 : bits % 8 == 0 ? 8 : bits % 4 == 0 ? 4 : 1; }

}  // namespace cuda
}  // namespace vimtrt
