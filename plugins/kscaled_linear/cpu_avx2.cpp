// KScaledLinear with AVX2: 6 rows by 16 outputs in 12 accumulators. vpmaddwd on int16 copies is
// exact; vpmaddubsw would saturate.
#include "plugins/kscaled_linear/cpu_avx2.h"

namespace vimtrt {
namespace {

struct Int16Pairs {
  using Weight = int16_t;
  static constexpr int64_t kColumns = 2;
  static constexpr int32_t kZero = 0;  // what x = 0 is converted to

  VIMTRT_ALWAYS_INLINE static __m256i add(__m256i acc, __m256i x, __m256i w) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(x, w));
  }

  // One row of x as int16, zeros behind its end.
  static void convert(const int8_t* x, int64_t count, int64_t bytes, void* target) {
    int16_t* values = static_cast<int16_t*>(target);
    int64_t c = 0;
    for (; c + 16 <= count; c += 16) {
      const __m128i eight_bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + c));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + c), _mm256_cvtepi8_epi16(eight_bits));
    }
    for (; c < count; ++c) values[c] = x[c];
    for (; c < bytes / 2; ++c) values[c] = 0;
  }
};

}  // namespace

const CpuKernels<KScaledLinearParams> kKScaledLinearAvx2 = {packed_bytes<Int16Pairs>, pack<Int16Pairs>,
                                                            scratch_bytes<Int16Pairs>, run<Int16Pairs>};

}  // namespace vimtrt
