// What this machine's units can do, measured: the limits that the kernels are compared with.
#pragma once

#include "plugins/common/isa.h"

namespace vimtrt {

// Of one thread, with all operands in registers. 0 where the instruction set has no such instruction.
struct Rates {
  // By the instruction set's dot product: AMX tiles, vpdpbusd, vpmaddwd with vpaddd.
  double int8_multiply_adds = 0;
  // Lanes times vector instructions, of the scan's mix: ten fused multiply-adds to eight additions and maxima.
  double fp32_operations = 0;
};

Rates measure_rates(Isa isa);

}  // namespace vimtrt
