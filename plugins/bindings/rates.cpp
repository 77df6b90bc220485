#include "plugins/bindings/rates.h"

#include <algorithm>
#include <chrono>
#include <cstdint>

#if VIMTRT_X86
#include <immintrin.h>
#endif

namespace vimtrt {
namespace {

// The best of some short runs: what disturbs a run makes it slower, never faster. body(iterations)
// does `work` times `iterations`.
template <class Body>
double best_rate(double work, const Body& body) {
  constexpr int kRuns = 15;
  constexpr int64_t kTurns = 100000;
  double best = 0;
  for (int run = 0; run < kRuns; ++run) {
    const auto begin = std::chrono::steady_clock::now();
    body(kTurns);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::max(best, work * static_cast<double>(kTurns) / seconds);
  }
  return best;
}

#if VIMTRT_X86

// Ten accumulators hide the latency; the loops are assembly, so that nothing else is in them.
#define VIMTRT_TEN(instruction)                                                                         \
  instruction "0\n" instruction "1\n" instruction "2\n" instruction "3\n" instruction "4\n" instruction \
              "5\n" instruction "6\n" instruction "7\n" instruction "8\n" instruction "9\n"
#define VIMTRT_LOOP(before, instructions)                                                                          \
  asm volatile(before "1:\n" instructions "dec %0\n jnz 1b\n"                                                      \
               : "+r"(iterations)::"xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
                 "xmm14", "xmm15", "cc")

// The scan's mix: nine of its operations are products, eight are not, and some processors run those beside the
// products, in other units.
constexpr double kMixed = 18;
#define VIMTRT_FOUR(instruction) instruction "\n" instruction "\n" instruction "\n" instruction "\n"

__attribute__((target("avx512f"))) void zmm_mixed(int64_t iterations) {
  VIMTRT_LOOP("vpxorq %%zmm15, %%zmm15, %%zmm15\n",
              VIMTRT_TEN("vfmadd231ps %%zmm15, %%zmm15, %%zmm") VIMTRT_FOUR("vaddps %%zmm15, %%zmm15, %%zmm14")
                  VIMTRT_FOUR("vmaxps %%zmm15, %%zmm15, %%zmm14"));
}

__attribute__((target("avx512f,avx512vnni"))) void zmm_dot(int64_t iterations) {
  VIMTRT_LOOP("vpxorq %%zmm15, %%zmm15, %%zmm15\n", VIMTRT_TEN("vpdpbusd %%zmm15, %%zmm15, %%zmm"));
}

__attribute__((target("avx2,fma"))) void ymm_mixed(int64_t iterations) {
  VIMTRT_LOOP("vpxor %%ymm15, %%ymm15, %%ymm15\n",
              VIMTRT_TEN("vfmadd231ps %%ymm15, %%ymm15, %%ymm") VIMTRT_FOUR("vaddps %%ymm15, %%ymm15, %%ymm14")
                  VIMTRT_FOUR("vmaxps %%ymm15, %%ymm15, %%ymm14"));
}

__attribute__((target("avx2,avxvnni"))) void ymm_dpbusd(int64_t iterations) {
  VIMTRT_LOOP("vpxor %%ymm15, %%ymm15, %%ymm15\n", VIMTRT_TEN("%{vex%} vpdpbusd %%ymm15, %%ymm15, %%ymm"));
}

// A product into ymm14 and its sum, five times.
__attribute__((target("avx2"))) void ymm_dot(int64_t iterations) {
  VIMTRT_LOOP("vpxor %%ymm15, %%ymm15, %%ymm15\n",
              "vpmaddwd %%ymm15, %%ymm15, %%ymm5\n vpaddd %%ymm5, %%ymm0, %%ymm0\n vpmaddwd %%ymm15, %%ymm15, %%ymm6\n "
              "vpaddd %%ymm6, "
              "%%ymm1, %%ymm1\n"
              "vpmaddwd %%ymm15, %%ymm15, %%ymm7\n vpaddd %%ymm7, %%ymm2, %%ymm2\n vpmaddwd %%ymm15, %%ymm15, %%ymm8\n "
              "vpaddd %%ymm8, "
              "%%ymm3, %%ymm3\n"
              "vpmaddwd %%ymm15, %%ymm15, %%ymm9\n vpaddd %%ymm9, %%ymm4, %%ymm4\n");
}

struct TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

__attribute__((target("amx-tile,amx-int8"))) void tile_dot(int64_t iterations) {
  static const TileConfig config;  // in memory: GCC 12 believes that the instruction reads eight bytes of it
  _tile_loadconfig(&config);
  asm volatile(
      "tilezero %%tmm4\n tilezero %%tmm5\n"
      "1:\n tdpbssd %%tmm5, %%tmm4, %%tmm0\n tdpbssd %%tmm5, %%tmm4, %%tmm1\n tdpbssd %%tmm5, %%tmm4, %%tmm2\n tdpbssd "
      "%%tmm5, %%tmm4, "
      "%%tmm3\n"
      "dec %0\n jnz 1b\n"
      : "+r"(iterations)::"cc");
  _tile_release();
}

#endif

}  // namespace

Rates measure_rates(Isa isa) {
  Rates rates;
#if VIMTRT_X86
  switch (isa) {
    case Isa::kAmx:
      rates.int8_multiply_adds = best_rate(4.0 * 16 * 16 * 64, tile_dot);
      rates.fp32_operations = best_rate(kMixed * 16, zmm_mixed);
      break;
    case Isa::kAvx512:
      rates.int8_multiply_adds = best_rate(10.0 * 64, zmm_dot);
      rates.fp32_operations = best_rate(kMixed * 16, zmm_mixed);
      break;
    case Isa::kAvxVnni:
      rates.int8_multiply_adds = best_rate(10.0 * 32, ymm_dpbusd);
      rates.fp32_operations = best_rate(kMixed * 8, ymm_mixed);
      break;
    case Isa::kAvx2:
      rates.int8_multiply_adds = best_rate(5.0 * 16, ymm_dot);
      rates.fp32_operations = best_rate(kMixed * 8, ymm_mixed);
      break;
    case Isa::kNeon:
    case Isa::kGeneric:
      break;
  }
#endif
  (void)isa;
  return rates;
}

}  // namespace vimtrt
