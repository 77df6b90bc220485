// The arithmetic of the int16 state (docs/numerics.md), one number at a time, for host and device.
#pragma once

#include <cmath>
#include <cstdint>

#include "plugins/common/numerics.h"

namespace vimtrt {

constexpr int kInt16Powers = 16;              // of each of delta's two halves
constexpr float kInt16LargeDrive = 32767.5f;  // from here on the drive is taken in sixteenths
constexpr float kInt16Sixteenth = 1.0f / 16;
constexpr float kInt16One = 32768.0f;  // 2^15, of products and decays

// x y / 2^15, rounded half up: what vpmulhrsw and sqrdmulh do.
VIMTRT_HD static inline int32_t int16_multiply(int32_t x, int32_t y) { return (x * y + (1 << 14)) >> 15; }

VIMTRT_HD static inline int32_t int16_saturate(int32_t x) {
  x = x > -32768 ? x : -32768;
  return x < 32767 ? x : 32767;
}

// rne(x) within 32767 of zero, -32767 for NaN.
VIMTRT_HD static inline int32_t int16_of(float x) {
  x = x > -32767.0f ? x : -32767.0f;
  x = x < 32767.0f ? x : 32767.0f;
  return static_cast<int32_t>(lrintf(x));
}

// base^k for k = 0..15.
VIMTRT_HD static inline void int16_powers(float base, float* powers) {
  const float square = base * base;
  powers[0] = 1.0f;
  powers[1] = base;
  for (int k = 2; k < kInt16Powers; ++k) powers[k] = powers[k - 2] * square;
}

// A row's entry of the two tables whose product is minus the decay.
VIMTRT_HD static inline int32_t int16_high(float power) {
  power *= kInt16One;
  return static_cast<int32_t>(lrintf(power < 32767.0f ? power : 32767.0f));
}

VIMTRT_HD static inline int32_t int16_low(float power) {
  power *= kInt16One;
  return -static_cast<int32_t>(lrintf(power < kInt16One ? power : kInt16One));
}

}  // namespace vimtrt
