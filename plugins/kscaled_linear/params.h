// Arguments of KScaledLinear (docs/numerics.md), shared by every kernel. Pointers are borrowed.
#pragma once

#include <cstdint>

namespace vimtrt {

struct KScaledLinearParams {
  int64_t rows = 0;                        // B * L; the token of row r is r % tokens
  int32_t tokens = 0;                      // L
  int32_t in_features = 0;                 // C
  int32_t out_features = 0;                // O
  int64_t x_stride = 0;                    // elements from one row of x to the next
  const int8_t* x = nullptr;               // row 0, already advanced by x_offset
  const int8_t* weight = nullptr;          // [O, C]
  const float* token_scale = nullptr;      // [L]
  const float* channel_scale = nullptr;    // [O]
  const float* bias = nullptr;             // [O]
  const float* out_token_scale = nullptr;  // [L]
  const int8_t* table = nullptr;           // [T, 256] or null
  const int32_t* table_id = nullptr;       // [O], -1: no table; null without tables
  float* y_float = nullptr;                // [rows, O]; exactly one of the two outputs is set
  int8_t* y_int8 = nullptr;                // [rows, O]
};

}  // namespace vimtrt
