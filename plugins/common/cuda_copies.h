// Copies from global to shared memory in units as wide as addresses and strides allow.
//
// A width is how many bytes can be moved at once: 16, 8, 4, or 1 (width_of in cuda_launch.h). From 4 on a unit is one
// asynchronous copy; with width 1 it is four bytes, each read on its own.
#pragma once

#include <cstdint>

#include "plugins/common/cuda.h"

namespace vimtrt {
namespace cuda {

// `count` where it lies between 0 and `limit`, and the nearer of them where it does not.
VIMTRT_DEVICE int limited(int count, int limit) { return count < 0 ? 0 : count < limit ? count : limit; }

// The first `bytes` of four bytes and zeros behind them, each read on its own.
VIMTRT_DEVICE uint32_t load_bytes(const int8_t* global, int bytes) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    if (i < bytes) word |= static_cast<uint32_t>(static_cast<uint8_t>(load(global + i))) << (8 * i);
  }
  return word;
}

// The first `bytes` bytes of a unit and zeros behind them. A unit has `width` bytes, but at most `Most` and at least 4.
template <int Most>
VIMTRT_DEVICE void copy_unit(int8_t* shared, const int8_t* global, int bytes, int width) {
  static_assert(Most == 16 || Most == 8 || Most == 4, "a unit has 16, 8 or 4 bytes");
  if (Most == 16 ? width == 16 : width >= Most) {
    copy_async<Most>(shared, global, bytes);
  } else if (Most > 8 && width == 8) {
    copy_async<8>(shared, global, bytes);
  } else if (Most > 4 && width == 4) {
    copy_async<4>(shared, global, bytes);
  } else {
    *reinterpret_cast<uint32_t*>(shared) = load_bytes(global, bytes);
  }
}

}  // namespace cuda
}  // namespace vimtrt
