// BidirectionalScan with AVX2: eight states in a ymm register, eight channels in a block. 16 registers do not hold a
// block's states, which stay in the first-level cache.
#include <immintrin.h>

#include "plugins/bidirectional_scan/cpu_driver.h"
#include "plugins/bidirectional_scan/cpu_ymm.h"

namespace vimtrt {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  using Vector = __m256;
  using Lanes = int;
  template <int N>
  using Rows = YmmRows;

  static Lanes lanes(int64_t left) { return left >= kLanes ? kLanes : static_cast<int>(left); }
  static Vector load(const float* source) { return _mm256_load_ps(source); }
  static void store(float* target, Vector v) { _mm256_store_ps(target, v); }
  static Vector broadcast(float x) { return _mm256_set1_ps(x); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  // The first `lanes` of 8 bytes; nothing behind them is read.
  static __m128i load_bytes(const int8_t* source, Lanes lanes) {
    if (lanes == kLanes) return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(source));
    alignas(8) int8_t bytes[kLanes] = {};
    for (int lane = 0; lane < lanes; ++lane) bytes[lane] = source[lane];
    return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
  }
  static Vector as_floats(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }
  static __m128i unsigned_bytes(__m128i bytes) { return _mm_xor_si128(bytes, _mm_set1_epi8(-128)); }
  static Vector unsigned_as_floats(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)); }
  static void store_halves(__m128i bytes, uint8_t* high, uint8_t* low) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(high), _mm_and_si128(bytes, _mm_set1_epi8(-16)));
    const __m128i low_half = _mm_and_si128(bytes, _mm_set1_epi8(15));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(low), _mm_slli_epi16(low_half, 3));
  }
  static void store_quantized(int8_t* target, Lanes lanes, Vector v) {
    const __m256i wide = _mm256_cvtps_epi32(YmmRows::quantized(v));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    const __m128i bytes = _mm_packs_epi16(words, words);
    if (lanes == kLanes) {
      _mm_storel_epi64(reinterpret_cast<__m128i*>(target), bytes);
      return;
    }
    alignas(8) int8_t buffer[kLanes];
    _mm_storel_epi64(reinterpret_cast<__m128i*>(buffer), bytes);
    for (int lane = 0; lane < lanes; ++lane) target[lane] = buffer[lane];
  }
  static void prefetch(const int8_t* address) { _mm_prefetch(address, _MM_HINT_T0); }

  template <int N, class Update>
  VIMTRT_ALWAYS_INLINE static Vector sums(const Update& update, const float* c) {
    return ymm_sums<N, 0>(update, c);
  }
};

}  // namespace

const CpuKernels<BidirectionalScanParams> kBidirectionalScanAvx2 = kScanKernels<Avx2>;

}  // namespace vimtrt
