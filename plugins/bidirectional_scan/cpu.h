// CPU kernels of BidirectionalScan (docs/numerics.md): one table of functions per instruction set, all with the same bits.
#pragma once

#include <cstddef>

#include "plugins/bidirectional_scan/params.h"
#include "plugins/common/isa.h"

namespace vimtrt {

// `packed` and `scratch` are 64-byte aligned. Packing reads every field but batch and the activations.
struct BidirectionalScanCpu {
  size_t (*packed_bytes)(const BidirectionalScanParams& params);
  void (*pack)(const BidirectionalScanParams& params, void* packed);
  size_t (*scratch_bytes)(const BidirectionalScanParams& params, int threads);
  void (*run)(const BidirectionalScanParams& params, const void* packed, void* scratch, int threads);
};

const BidirectionalScanCpu& bidirectional_scan_cpu(Isa isa);

extern const BidirectionalScanCpu kBidirectionalScanGeneric;
extern const BidirectionalScanCpu kBidirectionalScanAvx2;
extern const BidirectionalScanCpu kBidirectionalScanAvx512;
extern const BidirectionalScanCpu kBidirectionalScanNeon;  // 64-bit ARM only

// What the vector kernels share (cpu_generic.cpp); the layouts are drawn in README.md. `lanes` is 4, 8 or 16.
static constexpr int bidirectional_scan_direction_rows(int states) { return states + 4; }
static constexpr int bidirectional_scan_block_rows(int states) { return 2 * bidirectional_scan_direction_rows(states) + 1; }
size_t bidirectional_scan_packed_bytes(const BidirectionalScanParams& params, int lanes);
void bidirectional_scan_pack(const BidirectionalScanParams& params, int lanes, float* packed);
size_t bidirectional_scan_worker_scratch_bytes(const BidirectionalScanParams& params, int lanes);

}  // namespace vimtrt
