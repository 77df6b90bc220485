// KScaledLinear with AVX-VNNI, the 256-bit vpdpbusd of processors without AVX-512: 6 rows by 16
// outputs in 12 accumulators.
#include "plugins/kscaled_linear/cpu_avx2.h"

namespace vimtrt {
namespace {

// vpdpbusd takes unsigned x, so x + 128 goes in and the correction, where the sums start, takes 128 * sum(w) out again.
struct Int8Quads {
  using Weight = int8_t;
  static constexpr int64_t kColumns = 4;
  static constexpr int32_t kZero = 128;  // what x = 0 is converted to

  VIMTRT_ALWAYS_INLINE static __m256i add(__m256i acc, __m256i x, __m256i w) {
    return _mm256_dpbusd_avx_epi32(acc, x, w);
  }

  // One row of x + 128; behind its end, where the weights are zeros, zeros.
  static void convert(const int8_t* x, int64_t count, int64_t bytes, void* target) {
    uint8_t* values = static_cast<uint8_t*>(target);
    int64_t c = 0;
    for (; c + 32 <= count; c += 32) {
      const __m256i eight_bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + c));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + c), _mm256_xor_si256(eight_bits, _mm256_set1_epi8(-128)));
    }
    for (; c < count; ++c) values[c] = static_cast<uint8_t>(x[c] + 128);
    for (; c < bytes; ++c) values[c] = 0;
  }
};

}  // namespace

const CpuKernels<KScaledLinearParams> kKScaledLinearAvxVnni = {packed_bytes<Int8Quads>, pack<Int8Quads>,
                                                               scratch_bytes<Int8Quads>, run<Int8Quads>};

}  // namespace vimtrt
