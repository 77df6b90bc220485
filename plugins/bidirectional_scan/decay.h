// The decay of the scan as the product of two table entries (docs/numerics.md), one number at a time, for host and
// device.
#pragma once

#include "plugins/common/numerics.h"

namespace vimtrt {

constexpr int kDecayPowers = 16;                   // of each of delta's two halves
constexpr float kLeastPower = 1.0f / (1LL << 60);  // 2^-60: no product of two entries is subnormal
constexpr float kLeastDrive = 1.0f / (1LL << 50);  // 2^-50, in B and in g: no state decays into subnormal numbers

// max(power, 2^-60), 2^-60 for NaN.
VIMTRT_HD static inline float held_power(float power) { return power > kLeastPower ? power : kLeastPower; }

// base^k for k = 0..15, each held above 2^-60.
VIMTRT_HD static inline void decay_powers(float base, float* powers) {
  base = held_power(base);
  const float square = held_power(base * base);
  powers[0] = 1.0f;
  powers[1] = base;
  for (int k = 2; k < kDecayPowers; ++k) powers[k] = held_power(powers[k - 2] * square);
}

}  // namespace vimtrt
