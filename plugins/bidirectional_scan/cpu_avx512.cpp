// BidirectionalScan with AVX-512: 16 states in a zmm register, or eight in a ymm register, and 16 channels in a block.
#include "plugins/bidirectional_scan/cpu_driver.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own intrinsics
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "plugins/bidirectional_scan/cpu_ymm.h"

namespace vimtrt {
namespace {

struct ZmmRows {
  using Row = __m512;
  static constexpr int kWidth = 16;

  static Row zero() { return _mm512_setzero_ps(); }
  static Row load(const float* source) { return _mm512_loadu_ps(source); }
  static Row load_s8(const int8_t* source) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source))));
  }
  static Row broadcast(const float* source) { return _mm512_set1_ps(*source); }
  static void store(float* target, Row row) { _mm512_store_ps(target, row); }
  static Row multiply(Row a, Row b) { return _mm512_mul_ps(a, b); }
  static Row fma(Row a, Row b, Row c) { return _mm512_fmadd_ps(a, b, c); }
  static Row held(Row a) { return _mm512_max_ps(a, _mm512_set1_ps(kLeastPower)); }  // of NaN the second operand
  static Row quantized(Row a) {
    const __m512 limited = _mm512_min_ps(_mm512_max_ps(a, _mm512_set1_ps(-128.0f)), _mm512_set1_ps(127.0f));
    return _mm512_roundscale_ps(limited, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
};

template <int N>
struct RowsOf {
  using Rows = ZmmRows;
};
template <>
struct RowsOf<8> {
  using Rows = YmmRows;
};

struct Avx512 {
  static constexpr int kLanes = 16;
  using Vector = __m512;
  using Lanes = __mmask16;
  template <int N>
  using Rows = typename RowsOf<N>::Rows;

  static Lanes lanes(int64_t left) { return static_cast<__mmask16>(left >= kLanes ? 0xffff : (1 << left) - 1); }
  static Vector load(const float* source) { return _mm512_load_ps(source); }
  static void store(float* target, Vector v) { _mm512_store_ps(target, v); }
  static Vector broadcast(float x) { return _mm512_set1_ps(x); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static __m128i load_bytes(const int8_t* source, Lanes lanes) { return _mm_maskz_loadu_epi8(lanes, source); }
  static Vector as_floats(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)); }
  static __m128i unsigned_bytes(__m128i bytes) { return _mm_xor_si128(bytes, _mm_set1_epi8(-128)); }
  static Vector unsigned_as_floats(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)); }
  static void store_halves(__m128i bytes, uint8_t* high, uint8_t* low) {
    _mm_store_si128(reinterpret_cast<__m128i*>(high), _mm_and_si128(bytes, _mm_set1_epi8(-16)));
    const __m128i low_half = _mm_and_si128(bytes, _mm_set1_epi8(15));
    _mm_store_si128(reinterpret_cast<__m128i*>(low), _mm_slli_epi16(low_half, 3));
  }
  static void store_quantized(int8_t* target, Lanes lanes, Vector v) {
    _mm_mask_storeu_epi8(target, lanes, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(ZmmRows::quantized(v))));
  }
  static void prefetch(const int8_t* address) { _mm_prefetch(address, _MM_HINT_T0); }

  template <int N, class Update>
  VIMTRT_ALWAYS_INLINE static Vector sums(const Update& update, const float* c) {
    if constexpr (N == 8) {
      const __m256 low = ymm_sums<N, 0>(update, c), high = ymm_sums<N, 8>(update, c);
      return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
    } else {
      const auto c4 = [&](int n) VIMTRT_ALWAYS_INLINE { return _mm512_broadcast_f32x4(_mm_load_ps(c + n)); };
      // The states of four channels, four channels apart.
      struct Four {
        __m512 row[4];
      };
      const auto updated = [&](auto i) VIMTRT_ALWAYS_INLINE {
        constexpr auto kPart = Index<0>();
        return Four{update(Index<i>(), kPart), update(Index<i + 4>(), kPart), update(Index<i + 8>(), kPart),
                    update(Index<i + 12>(), kPart)};
      };
      // Their four chains: quarters of registers change places.
      const auto chains = [&](const Four& h) VIMTRT_ALWAYS_INLINE {
        const __m512 ab_low = _mm512_shuffle_f32x4(h.row[0], h.row[1], 0x44);
        const __m512 cd_low = _mm512_shuffle_f32x4(h.row[2], h.row[3], 0x44);
        const __m512 ab_high = _mm512_shuffle_f32x4(h.row[0], h.row[1], 0xee);
        const __m512 cd_high = _mm512_shuffle_f32x4(h.row[2], h.row[3], 0xee);
        __m512 sum = _mm512_mul_ps(_mm512_shuffle_f32x4(ab_low, cd_low, 0x88), c4(0));
        sum = _mm512_fmadd_ps(_mm512_shuffle_f32x4(ab_low, cd_low, 0xdd), c4(4), sum);
        sum = _mm512_fmadd_ps(_mm512_shuffle_f32x4(ab_high, cd_high, 0x88), c4(8), sum);
        return _mm512_fmadd_ps(_mm512_shuffle_f32x4(ab_high, cd_high, 0xdd), c4(12), sum);
      };
      const auto halves = [](__m512 x, __m512 y) VIMTRT_ALWAYS_INLINE {
        return _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
      };
      // The next four are updated before the chains of the last: these wait for them.
      const Four h0 = updated(Index<0>()), h1 = updated(Index<1>());
      const __m512 first = chains(h0);
      const Four h2 = updated(Index<2>());
      const __m512 second = chains(h1);
      const Four h3 = updated(Index<3>());
      const __m512d low = _mm512_castps_pd(halves(first, second));
      const __m512 third = chains(h2), fourth = chains(h3);
      const __m512d high = _mm512_castps_pd(halves(third, fourth));
      return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                           _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
    }
  }
};

}  // namespace

const CpuKernels<BidirectionalScanParams> kBidirectionalScanAvx512 = kScanKernels<Avx512>;

}  // namespace vimtrt
