// CPU kernels of BidirectionalScan (docs/numerics.md): one table of functions per instruction set, all
// with the same bits.
#pragma once

#include <cstddef>

#include "plugins/bidirectional_scan/params.h"
#include "plugins/common/cpu_kernels.h"

namespace vimtrt {

const CpuKernels<BidirectionalScanParams>& bidirectional_scan_cpu(Isa isa);

extern const CpuKernels<BidirectionalScanParams> kBidirectionalScanGeneric;
extern const CpuKernels<BidirectionalScanParams> kBidirectionalScanAvx2;
extern const CpuKernels<BidirectionalScanParams> kBidirectionalScanAvx512;
extern const CpuKernels<BidirectionalScanParams> kBidirectionalScanNeon;  // 64-bit ARM only

// What the vector kernels share (cpu_generic.cpp); the layouts are drawn in README.md. `lanes` is 4, 8 or 16.
static constexpr int bidirectional_scan_direction_rows(int states) { return 2 * states + 3; }
size_t bidirectional_scan_packed_bytes(const BidirectionalScanParams& params, int lanes);
void bidirectional_scan_pack(const BidirectionalScanParams& params, int lanes, float* packed);

}  // namespace vimtrt
