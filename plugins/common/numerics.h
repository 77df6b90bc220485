// The numeric contract (docs/numerics.md) in code: scalar forms, for host and device. Vector kernels must
// give the same bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define VIMTRT_HD __host__ __device__
#else
#define VIMTRT_HD
#endif

namespace vimtrt {

// Minimax polynomial of 2^f on [0, 1], c0..c5, as fp32 bit patterns so that no compiler parses a decimal differently.
constexpr uint32_t kExp2CoefficientBits[6] = {0x3f800000u, 0x3f31725du, 0x3e75edabu,
                                              0x3d648e7bu, 0x3c13bc2eu, 0x3af4ba8bu};
constexpr float kExp2Limit = 126.0f;

VIMTRT_HD static inline float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

VIMTRT_HD static inline uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// sat8(rne(x)): clamping first gives the same value and makes the conversion safe for infinities. NaN becomes -128.
VIMTRT_HD static inline int8_t quantize_s8(float x) {
  float clamped = x > -128.0f ? x : -128.0f;
  clamped = clamped < 127.0f ? clamped : 127.0f;
  return static_cast<int8_t>(lrintf(clamped));  // the rounding mode is to nearest even
}

// 2^x by floor, a polynomial of the fraction with fma, and an integer add to the exponent.
VIMTRT_HD static inline float exp2c(float x) {
  x = x > -kExp2Limit ? x : -kExp2Limit;
  x = x < kExp2Limit ? x : kExp2Limit;
  const float whole = floorf(x);
  const float f = x - whole;
  float p = from_bits(kExp2CoefficientBits[5]);
  for (int k = 4; k >= 0; --k) p = fmaf(p, f, from_bits(kExp2CoefficientBits[k]));
  return from_bits(to_bits(p) + (static_cast<uint32_t>(static_cast<int32_t>(whole)) << 23));
}

}  // namespace vimtrt
