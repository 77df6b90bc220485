// The contract's rounding to int8 without the conversion unit, which runs at a quarter of the rate of additions.
#pragma once

#include <cmath>
#include <cstdint>

#include "plugins/common/cuda.h"
#include "plugins/common/numerics.h"

namespace vimtrt {
namespace cuda {

// 1.5 * 2^23. Floats from 2^23 to 2^24 are whole numbers, and their bits go up by one from each to the next. Adding
// this leaves no bits behind the point: the sum is rounded to the nearest even whole number, which its low bits hold.
constexpr float kWhole = 12582912.0f;
constexpr int32_t kWholeBits = 0x4b400000;

VIMTRT_DEVICE float clamped_s8(float x) { return fminf(fmaxf(x, -128.0f), 127.0f); }

// The low byte is sat8(rne(x)).
VIMTRT_DEVICE uint32_t quantized_s8(float x) { return to_bits(clamped_s8(x) + kWhole); }

// The low byte is sat8(rne(x)) + 128, the index into a table.
VIMTRT_DEVICE uint32_t quantized_u8(float x) { return to_bits(clamped_s8(x) + (kWhole + 128.0f)); }

}  // namespace cuda
}  // namespace vimtrt
