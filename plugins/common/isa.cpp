#include "plugins/common/isa.h"

#include <stdexcept>

#if VIMTRT_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif VIMTRT_AARCH64
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace vimtrt {

#if VIMTRT_X86

namespace {

// Linux keeps the tiles' registers from a process until it asks for them (Documentation/arch/x86/xstate.rst). The
// answer holds for all its threads, and for processes forked from it.
bool has_amx() {
  static const bool granted = [] {
    unsigned a, b, c, d;
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;  // of CPUID 7.0 EDX
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTile) == 0 || (d & kInt8) == 0) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
}

// GCC 12's __builtin_cpu_supports does not know it. What saves ymm registers, which avx2 asks for, is all it needs.
bool has_avx_vnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4)) != 0;
}

}  // namespace

// __builtin_cpu_supports also asks whether the operating system saves the wide registers (XGETBV).
std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni")) {
    if (has_amx()) isas.push_back(Isa::kAmx);
    isas.push_back(Isa::kAvx512);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    if (has_avx_vnni()) isas.push_back(Isa::kAvxVnni);
    isas.push_back(Isa::kAvx2);
  }
  isas.push_back(Isa::kGeneric);
  return isas;
}

bool has_avx512_vbmi() { return __builtin_cpu_supports("avx512vbmi"); }

#else

#if VIMTRT_AARCH64
std::vector<Isa> available_isas() {
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) return {Isa::kNeon, Isa::kGeneric};
  return {Isa::kGeneric};
}
#else
std::vector<Isa> available_isas() { return {Isa::kGeneric}; }
#endif

bool has_avx512_vbmi() { return false; }

#endif

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kAmx:
      return "amx";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvxVnni:
      return "avxvnni";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kNeon:
      return "neon";
    case Isa::kGeneric:
      break;
  }
  return "generic";
}

Isa isa_from_name(const std::string& name) {
  std::string names;
  for (const Isa isa : available_isas()) {
    if (name == isa_name(isa)) return isa;
    names += names.empty() ? isa_name(isa) : std::string(", ") + isa_name(isa);
  }
  throw std::invalid_argument("instruction set \"" + name + "\" cannot run here: choose one of " + names);
}

}  // namespace vimtrt
