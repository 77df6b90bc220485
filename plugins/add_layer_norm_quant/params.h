// Arguments of AddLayerNormQuant (docs/numerics.md), shared by every kernel. Pointers are borrowed.
#pragma once

#include <cstdint>

namespace vimtrt {

struct AddLayerNormQuantParams {
  int64_t rows = 0;                 // B * L; the token of row r is r % tokens
  int32_t tokens = 0;               // L
  int32_t features = 0;             // D
  bool residual_is_shared = false;  // residual is [1, L, D]: row r reads residual row r % tokens
  float epsilon = 0.0f;
  const float* hidden = nullptr;         // [rows, D]
  const float* residual = nullptr;       // [rows, D] or [L, D]
  const float* gain = nullptr;           // [D]
  const float* shift = nullptr;          // [D]
  const float* inv_scale_tok = nullptr;  // [L]
  float* residual_out = nullptr;         // [rows, D]; may be the same memory as residual or hidden
  int8_t* y = nullptr;                   // [rows, D]
};

}  // namespace vimtrt
