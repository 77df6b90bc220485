// Arguments of BidirectionalScan (docs/numerics.md), shared by every kernel. Pointers are borrowed.
#pragma once

#include <cstdint>

namespace vimtrt {

enum class ScanState { kInt8, kFp32 };  // in the order of the attribute's texts

struct BidirectionalScanParams {
  int64_t batch = 0;     // B
  int32_t tokens = 0;    // L
  int32_t channels = 0;  // E
  int32_t states = 0;    // N: 8 or 16
  ScanState state = ScanState::kInt8;
  int64_t bc_stride = 0;                        // elements from one token of bc to the next
  int64_t gate_stride = 0;                      // elements from one token of gate to the next
  const int8_t* u[2] = {nullptr, nullptr};      // [B, L, E]
  const int8_t* delta[2] = {nullptr, nullptr};  // [B, L, E], holding d - 128
  const int8_t* bc[2] = {nullptr, nullptr};     // B at columns 0..N-1, C at N..2N-1: already advanced by bc_offset
  const int8_t* gate = nullptr;                 // already advanced by gate_offset
  const float* a_log2 = nullptr;                // [2, E, N]
  const float* decay_tok = nullptr;             // [2, L], for the int8 state
  const float* input_scale = nullptr;           // [2, E]
  const float* b_scale_state = nullptr;         // [2, N]
  const float* b_scale_tok = nullptr;           // [2, L]
  const float* c_scale_state = nullptr;         // [2, N]
  const float* c_scale_tok = nullptr;           // [2, L]
  const float* y_scale = nullptr;               // [2, E]
  const float* skip_scale = nullptr;            // [2, E]
  const float* gate_scale = nullptr;            // [E]
  const float* out_inv_scale_tok = nullptr;     // [L]
  int8_t* y = nullptr;                          // [B, L, E]
};

}  // namespace vimtrt
