// Arguments of QuantConv1dSiLU (docs/numerics.md), shared by every kernel. Pointers are borrowed.
#pragma once

#include <cstdint>

namespace vimtrt {

struct QuantConv1dSiluParams {
  int64_t batch = 0;                     // B
  int32_t tokens = 0;                    // L
  int32_t channels = 0;                  // E
  int64_t x_stride = 0;                  // elements from one token of x to the next
  const int8_t* x = nullptr;             // [B, L, x_stride], already advanced by x_offset
  const int8_t* weight = nullptr;        // [2, E, 4]
  const float* channel_scale = nullptr;  // [2, E]
  const float* bias = nullptr;           // [2, E]
  const int8_t* table = nullptr;         // [T, 256]
  const int32_t* table_id = nullptr;     // [2, E]
  int8_t* u[2] = {nullptr, nullptr};     // forward, backward: [B, L, E]
};

}  // namespace vimtrt
