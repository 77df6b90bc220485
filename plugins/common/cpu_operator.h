// An operator on the CPU: the one way to call its kernels that knows no operator.
#pragma once

#include "plugins/common/cpu_kernels.h"
#include "plugins/common/op.h"

namespace vimtrt {

// Those of the instruction set, or of the best one below it that has kernels; generic ones are always there.
template <class Params>
struct CpuKernelTable {
  const CpuKernels<Params>* generic;
  const CpuKernels<Params>* neon;
  const CpuKernels<Params>* avx2;
  const CpuKernels<Params>* avxvnni;
  const CpuKernels<Params>* avx512;
  const CpuKernels<Params>* amx;

  const CpuKernels<Params>& operator[](Isa isa) const {
    switch (isa) {
      case Isa::kAmx:
        if (amx != nullptr) return *amx;
        return (*this)[Isa::kAvx512];
      case Isa::kAvx512:
        if (avx512 != nullptr) return *avx512;
        return *generic;
      case Isa::kAvxVnni:
        if (avxvnni != nullptr) return *avxvnni;
        return (*this)[Isa::kAvx2];
      case Isa::kAvx2:
        if (avx2 != nullptr) return *avx2;
        return *generic;
      case Isa::kNeon:
        if (neon != nullptr) return *neon;
        return *generic;
      case Isa::kGeneric:
        break;
    }
    return *generic;
  }
};

struct CpuOperator {
  size_t (*packed_bytes)(Isa isa, const Arguments& arguments);
  void (*pack)(Isa isa, const Arguments& arguments, void* packed);
  size_t (*scratch_bytes)(Isa isa, const Arguments& arguments, int threads);
  void (*run)(Isa isa, const Arguments& arguments, const void* packed, void* scratch, int threads);
};

// `bind` makes the kernels' parameters of a node, `kernels` gives the table's entry.
template <class Params, Params (*bind)(const Arguments&), const CpuKernels<Params>& (*kernels)(Isa)>
constexpr CpuOperator cpu_operator() {
  return {
      [](Isa isa, const Arguments& arguments) { return kernels(isa).packed_bytes(bind(arguments)); },
      [](Isa isa, const Arguments& arguments, void* packed) { kernels(isa).pack(bind(arguments), packed); },
      [](Isa isa, const Arguments& arguments, int threads) {
        return kernels(isa).scratch_bytes(bind(arguments), threads);
      },
      [](Isa isa, const Arguments& arguments, const void* packed, void* scratch, int threads) {
        kernels(isa).run(bind(arguments), packed, scratch, threads);
      },
  };
}

}  // namespace vimtrt
