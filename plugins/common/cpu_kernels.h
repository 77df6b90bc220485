// The kernels of an operator for each instruction set, all with the same bits.
//
// This header is compiled into files of different instruction sets: functions here have internal
// linkage, as in threads.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plugins/common/isa.h"

namespace vimtrt {

// The kernels of one instruction set. `packed` and `scratch` are 64-byte aligned. Packing, once at load, reads
// constants and sizes; where it takes no bytes, run reads the constants themselves, and where it does, a constant that
// the operator's definition calls packed may be null.
template <class Params>
struct CpuKernels {
  size_t (*packed_bytes)(const Params& params);
  void (*pack)(const Params& params, void* packed);
  size_t (*scratch_bytes)(const Params& params, int threads);
  void (*run)(const Params& params, const void* packed, void* scratch, int threads);
};

namespace {

// For kernels that need none of it.
template <class Params>
size_t no_packed_bytes(const Params&) {
  return 0;
}
template <class Params>
void no_pack(const Params&, void*) {}
template <class Params>
size_t no_scratch_bytes(const Params&, int) {
  return 0;
}

}  // namespace
}  // namespace vimtrt
