// fp32 selective scan with gradients, for calibration, fp32 evaluation and training on a CPU. Not under the numeric
// contract: the fp32 model is judged by accuracy, so the compiler may contract and reorder here.
#pragma once

#include <cstdint>

namespace vimtrt {

// One direction. h[t] = exp(delta[t] * A) * h[prev(t)] + delta[t] * u[t] * B[t]; y[t] = sum_n C[t] * h[t] + D * u[t];
// prev(t) is t - 1, or t + 1 if `reverse`.
struct ScanFp32Shape {
  int64_t batch = 0;     // B
  int64_t tokens = 0;    // L
  int64_t channels = 0;  // E
  int32_t states = 0;    // N: 8 or 16
  bool reverse = false;
};

struct ScanFp32Inputs {
  const float* u = nullptr;      // [B, L, E]
  const float* delta = nullptr;  // [B, L, E]
  const float* a = nullptr;      // [E, N], negative
  const float* b = nullptr;      // [B, L, N]
  const float* c = nullptr;      // [B, L, N]
  const float* d = nullptr;      // [E]
};

struct ScanFp32Gradients {
  float* u = nullptr;      // [B, L, E]
  float* delta = nullptr;  // [B, L, E]
  float* a = nullptr;      // [E, N]
  float* b = nullptr;      // [B, L, N]
  float* c = nullptr;      // [B, L, N]
  float* d = nullptr;      // [E]
};

bool scan_fp32_supports(int32_t states);

// Writes y [B, L, E].
void scan_fp32_forward(const ScanFp32Shape& shape, const ScanFp32Inputs& in, float* y, int threads);

// Given dy = d loss / d y [B, L, E], writes every gradient. The states are recomputed, not stored: memory is
// O(L * N) per thread.
void scan_fp32_backward(const ScanFp32Shape& shape, const ScanFp32Inputs& in, const float* dy,
                        const ScanFp32Gradients& out, int threads);

}  // namespace vimtrt
