#include "plugins/bidirectional_scan/cpu.h"

#include "plugins/bidirectional_scan/op.h"
#include "plugins/common/cpu_operator.h"

namespace vimtrt {

const CpuKernels<BidirectionalScanParams>& bidirectional_scan_cpu(Isa isa) {
#if VIMTRT_X86
  static const CpuKernelTable<BidirectionalScanParams> table = {
      &kBidirectionalScanGeneric, nullptr, &kBidirectionalScanAvx2, nullptr, &kBidirectionalScanAvx512, nullptr};
#elif VIMTRT_AARCH64
  static const CpuKernelTable<BidirectionalScanParams> table = {
      &kBidirectionalScanGeneric, &kBidirectionalScanNeon, nullptr, nullptr, nullptr, nullptr};
#else
  static const CpuKernelTable<BidirectionalScanParams> table = {
      &kBidirectionalScanGeneric, nullptr, nullptr, nullptr, nullptr, nullptr};
#endif
  return table[isa];
}

const CpuOperator& bidirectional_scan_cpu_operator() {
  static const CpuOperator table =
      cpu_operator<BidirectionalScanParams, bidirectional_scan_bind, bidirectional_scan_cpu>();
  return table;
}

}  // namespace vimtrt
