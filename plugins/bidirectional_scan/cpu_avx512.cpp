// BidirectionalScan, 16 channels in the lanes of a zmm register and the N states of a block in N registers.
#include "plugins/bidirectional_scan/cpu_driver.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own intrinsics
#include <immintrin.h>
#pragma GCC diagnostic pop

#include "plugins/bidirectional_scan/cpu_int16_ymm.h"
#include "plugins/common/numerics.h"
#include "plugins/common/unroll.h"

namespace vimtrt {
namespace {

constexpr int kPrefetch = 16;  // tokens: their rows may be in another processor's cache

inline __m512 rounded(__m512 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// sat8(rne(x)) as floats.
inline __m512 quantized(__m512 x) {
  return rounded(_mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-128.0f)), _mm512_set1_ps(127.0f)));
}

inline __m512 coefficient(int k) {
  return _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(kExp2CoefficientBits[k])));
}

// vrangeps: the smaller magnitude with the first operand's sign, which clamps to a symmetric range in one instruction.
constexpr int kSmallerMagnitude = 0b0010;

// A load that the compiler does not turn into a copy of a register: a fused multiply-add overwrites one of its
// operands, and a copy of one that is needed again would take a slot of the very units that are busy, a load does not.
VIMTRT_ALWAYS_INLINE inline __m512 loaded(const float* source) {
  __m512 value = _mm512_load_ps(source);
  asm("" : "+v"(value));
  return value;
}

// Four states of a token side by side, one of each chain (N = 16) or two of each (N = 8).
constexpr int kGroup = 4;
template <int N>
constexpr int state_of(int group, int lane) {
  return N == 16 ? 4 * lane + group : lane / 2 * 4 + 2 * group + lane % 2;
}

// What is left of exp2c is scalef(polynomial, x). The polynomial lies in [1, 2 + 2^-20] and the exponent in [-126,
// 126], so p * 2^i is a normal number: scalef, which takes the floor of x itself, gives the bits that the contract's
// integer add gives.
struct Exponents {
  __m512 x[kGroup];
  __m512 polynomial[kGroup];
};

// kBounded: x is known to lie in exp2c's range.
template <bool kBounded>
inline __m512 limited(__m512 x) {
  return kBounded ? x : _mm512_range_ps(x, _mm512_set1_ps(kExp2Limit), kSmallerMagnitude);
}

inline __m512 floor_of(__m512 x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }

inline __m512 masked_s8(__mmask16 mask, const int8_t* source) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, source)));
}

inline __m512 masked_delta(__mmask16 mask, const int8_t* source) {
  const __m128i biased = _mm_xor_si128(_mm_maskz_loadu_epi8(mask, source), _mm_set1_epi8(-128));
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(biased));
}

constexpr int kZmmLanes = 16;

// The states of two channels for N = 16, of four for N = 8. What is not of whole blocks is YmmRows'.
struct Avx512Int16 : YmmRows {
  template <int N>
  using Row = __m512i;
  template <int N>
  static constexpr int kChannels = 32 / N;

  template <int N>
  static __m512i zero() {
    return _mm512_setzero_si512();
  }
  template <int N>
  static __m512i twice(const int16_t* states) {
    if constexpr (N == 16) return _mm512_broadcast_i64x4(*reinterpret_cast<const __m256i*>(states));
    return _mm512_broadcast_i32x4(*reinterpret_cast<const __m128i*>(states));
  }
  template <int N>
  static __m512i rows(const char* tables, const uint16_t* offsets) {
    const auto quarter = [&](int i) VIMTRT_ALWAYS_INLINE {
      return *reinterpret_cast<const __m128i*>(tables + offsets[i * kZmmLanes / 4]);
    };
    const auto half = [&](int i) VIMTRT_ALWAYS_INLINE {
      if constexpr (N == 16) return *reinterpret_cast<const __m256i*>(tables + offsets[i * kZmmLanes / 2]);
      return in_halves(quarter(2 * i), quarter(2 * i + 1));
    };
    return _mm512_inserti64x4(_mm512_castsi256_si512(half(0)), half(1), 1);
  }
  template <int N>
  static __m512i numbers(const uint32_t* g) {
    constexpr int kParts = kChannels<N>;
    __m512i numbers = _mm512_set1_epi32(static_cast<int>(g[0]));
    unroll<kParts - 1>([&](auto i) VIMTRT_ALWAYS_INLINE {
      constexpr __mmask16 kPart = static_cast<__mmask16>(((1 << 16 / kParts) - 1) << (i + 1) * 16 / kParts);
      numbers = _mm512_mask_set1_epi32(numbers, kPart, static_cast<int>(g[(i + 1) * kZmmLanes / kParts]));
    });
    return numbers;
  }
  static __m512i multiply(__m512i x, __m512i y) { return _mm512_mulhrs_epi16(x, y); }
  static __m512i subtract(__m512i x, __m512i y) { return _mm512_subs_epi16(x, y); }
  static __m512i times_sixteen(__m512i x) {
    for (int i = 0; i < 4; ++i) x = _mm512_adds_epi16(x, x);
    return x;
  }
  static __m512i select(__m512i mask, __m512i x, __m512i y) { return _mm512_ternarylogic_epi32(mask, x, y, 0xca); }
  static __m512i dot(__m512i h, __m512i c) { return _mm512_madd_epi16(h, c); }

  template <int N, class Dots>
  VIMTRT_ALWAYS_INLINE static __m512 sums(const Dots& dots) {
    const auto two = [&](auto first) VIMTRT_ALWAYS_INLINE {
      const __m512i a = dots(first), b = dots(Index<first + 1>());
      return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    };
    const auto four = [&](auto first) VIMTRT_ALWAYS_INLINE {
      const __m512i a = two(first), b = two(Index<first + 2>());
      return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    };
    const __m512i first = four(Index<0>());
    if constexpr (N == 8) return _mm512_cvtepi32_ps(first);
    const __m512i second = four(Index<4>());
    const __m512i sum =
        _mm512_add_epi32(_mm512_shuffle_i32x4(first, second, 0x88), _mm512_shuffle_i32x4(first, second, 0xdd));
    return _mm512_cvtepi32_ps(_mm512_shuffle_i32x4(sum, sum, 0xd8));
  }

  template <int N>
  static void powers(const float* base, bool is_low, int16_t* target) {
    if constexpr (N == 8) {
      YmmRows::powers<N>(base, is_low, target);
    } else {
      const __m512 least = _mm512_set1_ps(-kInt16One), most = _mm512_set1_ps(32767.0f);
      const __m512 power = _mm512_load_ps(base), square = _mm512_mul_ps(power, power);
      __m512 even = _mm512_set1_ps(is_low ? -kInt16One : kInt16One), odd = _mm512_mul_ps(even, power);
      for (int k = 0; k < kInt16Powers; k += 2) {
        const auto row = [&](__m512 x) VIMTRT_ALWAYS_INLINE {
          return _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(x, least), most)));
        };
        _mm256_store_si256(reinterpret_cast<__m256i*>(target + k * N), row(even));
        _mm256_store_si256(reinterpret_cast<__m256i*>(target + (k + 1) * N), row(odd));
        even = _mm512_mul_ps(even, square);
        odd = _mm512_mul_ps(odd, square);
      }
    }
  }

  template <int N>
  static void drive(__m512 u, __m512 delta, __m512 input_scale, __m512 b_tok, const uint16_t* first_rows,
                    TokenDrive<kZmmLanes>& drive) {
    const __m512 g = _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(delta, u), input_scale), b_tok);
    const __mmask16 is_large = _mm512_cmp_ps_mask(_mm512_abs_ps(g), _mm512_set1_ps(kInt16LargeDrive), _CMP_NLT_UQ);
    drive.is_large = is_large;
    const __m512 part = _mm512_mask_mul_ps(g, is_large, g, _mm512_set1_ps(kInt16Sixteenth));
    const __m512i whole =
        _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(part, _mm512_set1_ps(-32767.0f)), _mm512_set1_ps(32767.0f)));
    _mm512_store_si512(drive.g, _mm512_mask_blend_epi16(0xaaaaaaaa, whole, _mm512_slli_epi32(whole, 16)));
    const __m256i dq = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(delta));
    const __m256i row_bytes = _mm256_set1_epi16(N * sizeof(int16_t));
    const __m256i first = _mm256_load_si256(reinterpret_cast<const __m256i*>(first_rows));
    const __m256i high = _mm256_mullo_epi16(_mm256_srli_epi16(dq, 4), row_bytes);
    const __m256i low = _mm256_mullo_epi16(
        _mm256_or_si256(_mm256_and_si256(dq, _mm256_set1_epi16(15)), _mm256_set1_epi16(16)), row_bytes);
    _mm256_store_si256(reinterpret_cast<__m256i*>(drive.high), _mm256_add_epi16(first, high));
    _mm256_store_si256(reinterpret_cast<__m256i*>(drive.low), _mm256_add_epi16(first, low));
  }
};

struct Avx512 {
  static constexpr int kLanes = kZmmLanes;
  using Vector = __m512;
  using Lanes = __mmask16;
  using Int16 = Avx512Int16;
  static Lanes lanes(int64_t left) { return static_cast<__mmask16>(left >= kLanes ? 0xffff : (1 << left) - 1); }
  static Vector load(const float* source) { return _mm512_load_ps(source); }
  static void store(float* target, Vector v) { _mm512_store_ps(target, v); }
  static Vector broadcast(float x) { return _mm512_set1_ps(x); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static Vector load_s8(const int8_t* source, Lanes lanes) { return masked_s8(lanes, source); }
  static Vector load_delta(const int8_t* source, Lanes lanes) { return masked_delta(lanes, source); }
  static void store_quantized(int8_t* target, Lanes lanes, Vector v) {
    _mm_mask_storeu_epi8(target, lanes, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(quantized(v))));
  }
  static void prefetch(const int8_t* address) { _mm_prefetch(address, _MM_HINT_T0); }

  template <int N>
  [[gnu::noinline]] static void scale_bc(const BidirectionalScanParams& p, int64_t image, float* bcf) {
    constexpr __mmask16 kMask = (1 << N) - 1;
    for (int d = 0; d < 2; ++d) {
      const __m512 b_scale = _mm512_maskz_loadu_ps(kMask, p.b_scale_state + d * N);
      const __m512 c_scale = _mm512_maskz_loadu_ps(kMask, p.c_scale_state + d * N);
      const int64_t tok = static_cast<int64_t>(d) * p.tokens;
      for (int t = 0; t < p.tokens; ++t, bcf += 2 * N) {
        const int8_t* bc = p.bc[d] + (image * p.tokens + t) * p.bc_stride;
        const __m512 b =
            _mm512_mul_ps(_mm512_mul_ps(masked_s8(kMask, bc), b_scale), _mm512_set1_ps(p.b_scale_tok[tok + t]));
        const __m512 c =
            _mm512_mul_ps(_mm512_mul_ps(masked_s8(kMask, bc + N), c_scale), _mm512_set1_ps(p.c_scale_tok[tok + t]));
        _mm512_mask_storeu_ps(bcf, kMask, b);
        _mm512_mask_storeu_ps(bcf + N, kMask, c);
      }
    }
  }

  template <int N, bool kStateInt8, bool kBounded, class Sink>
  static inline void scan_tokens(const BidirectionalScanParams& p, int d, int64_t image, int first_channel, Lanes lanes,
                                 const float* packed, const float* bcf, const Sink& sink) {
    const int L = p.tokens;
    const int64_t E = p.channels;
    const int8_t* u_base = p.u[d] + image * L * E + first_channel;
    const int8_t* delta_base = p.delta[d] + image * L * E + first_channel;
    const float* decay_tok = p.decay_tok + static_cast<int64_t>(d) * L;
    const __m512 input_scale = _mm512_load_ps(packed + N * kLanes);
    const __m512 y_scale = _mm512_load_ps(packed + (N + 1) * kLanes);
    const __m512 skip_scale = _mm512_load_ps(packed + (N + 2) * kLanes);

    alignas(64) float first_coefficient[kLanes];
    _mm512_store_ps(first_coefficient, coefficient(5));
    const auto token = [&](int step) VIMTRT_ALWAYS_INLINE { return d == 0 ? step : L - 1 - step; };
    const auto exponent = [&](int n, __m512 delta, __m512 decay) VIMTRT_ALWAYS_INLINE {
      return _mm512_fmadd_ps(loaded(packed + n * kLanes), delta, decay);
    };
    __m512 delta = masked_delta(lanes, delta_base + token(0) * E);
    __m512 decay = _mm512_set1_ps(decay_tok[token(0)]);
    Exponents e;  // of the group at hand
    unroll<kGroup>([&](auto j) VIMTRT_ALWAYS_INLINE {
      e.x[j] = limited<kBounded>(exponent(state_of<N>(0, j), delta, decay));
      const __m512 f = _mm512_sub_ps(e.x[j], floor_of(e.x[j]));
      e.polynomial[j] = coefficient(5);
      unroll<5>([&](auto k) VIMTRT_ALWAYS_INLINE {
        e.polynomial[j] = _mm512_fmadd_ps(e.polynomial[j], f, coefficient(4 - k));
      });
    });
    __m512 state[N];  // h, or hq as a float
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) state[n] = _mm512_setzero_ps();
    for (int step = 0; step < L; ++step) {
      const int t = token(step), next = token(step + 1 < L ? step + 1 : step);
      const __m512 u = masked_s8(lanes, u_base + t * E);
      const __m512 next_delta = masked_delta(lanes, delta_base + next * E);
      const __m512 next_decay = _mm512_set1_ps(decay_tok[next]);
      const int64_t ahead = static_cast<int64_t>(token(step + kPrefetch < L ? step + kPrefetch : step)) * E;
      _mm_prefetch(u_base + ahead, _MM_HINT_T0);
      _mm_prefetch(delta_base + ahead, _MM_HINT_T0);
      const __m512 g = _mm512_mul_ps(_mm512_mul_ps(delta, u), input_scale);
      const float* bf = bcf + static_cast<int64_t>(t) * (2 * N);
      __m512 chain[N / 4];
      // The updates of a group and the exponents of the next, of the next token after the last group, in turns: Zen 4
      // has two pipes for products and two for the rest, and its scheduler sees too little ahead to fill both from one
      // after the other. The order of the steps was found by trial.
      unroll<N / kGroup>([&](auto i) VIMTRT_ALWAYS_INLINE {
        constexpr bool kLast = i + 1 == N / kGroup;
        constexpr int kNext = kLast ? 0 : i + 1;
        const auto each = [](const auto& body) VIMTRT_ALWAYS_INLINE { unroll<kGroup>(body); };
        __m512 h[kGroup], q[kGroup], f[kGroup];
        Exponents to_come;
        __m512(&x)[kGroup] = to_come.x;
        __m512(&p)[kGroup] = to_come.polynomial;
        each([&](auto j) VIMTRT_ALWAYS_INLINE { h[j] = _mm512_mul_ps(g, _mm512_set1_ps(bf[state_of<N>(i, j)])); });
        each([&](auto j) VIMTRT_ALWAYS_INLINE {
          x[j] = exponent(state_of<N>(kNext, j), kLast ? next_delta : delta, kLast ? next_decay : decay);
        });
        each([&](auto j) VIMTRT_ALWAYS_INLINE { x[j] = limited<kBounded>(x[j]); });
        each([&](auto j) VIMTRT_ALWAYS_INLINE { f[j] = floor_of(x[j]); });
        each([&](auto j) VIMTRT_ALWAYS_INLINE { e.polynomial[j] = _mm512_scalef_ps(e.polynomial[j], e.x[j]); });
        each([&](auto j) VIMTRT_ALWAYS_INLINE { f[j] = _mm512_sub_ps(x[j], f[j]); });
        each([&](auto j)
                 VIMTRT_ALWAYS_INLINE { h[j] = _mm512_fmadd_ps(e.polynomial[j], state[state_of<N>(i, j)], h[j]); });
        each([&](auto j)
                 VIMTRT_ALWAYS_INLINE { q[j] = kStateInt8 ? _mm512_max_ps(h[j], _mm512_set1_ps(-128.0f)) : h[j]; });
        each([&](auto j) VIMTRT_ALWAYS_INLINE {
          constexpr int n = state_of<N>(i, j);
          const __m512 c = _mm512_set1_ps(bf[N + n]);
          chain[n / 4] = n % 4 == 0 ? _mm512_mul_ps(h[j], c) : _mm512_fmadd_ps(h[j], c, chain[n / 4]);
        });
        each([&](auto j)
                 VIMTRT_ALWAYS_INLINE { p[j] = _mm512_fmadd_ps(loaded(first_coefficient), f[j], coefficient(4)); });
        each([&](auto j) VIMTRT_ALWAYS_INLINE { p[j] = _mm512_fmadd_ps(p[j], f[j], coefficient(3)); });
        if constexpr (kStateInt8) {
          each([&](auto j) VIMTRT_ALWAYS_INLINE { q[j] = _mm512_min_ps(q[j], _mm512_set1_ps(127.0f)); });
          each([&](auto j) VIMTRT_ALWAYS_INLINE { q[j] = rounded(q[j]); });
        }
        each([&](auto j) VIMTRT_ALWAYS_INLINE { p[j] = _mm512_fmadd_ps(p[j], f[j], coefficient(2)); });
        each([&](auto j) VIMTRT_ALWAYS_INLINE { p[j] = _mm512_fmadd_ps(p[j], f[j], coefficient(1)); });
        each([&](auto j) VIMTRT_ALWAYS_INLINE { p[j] = _mm512_fmadd_ps(p[j], f[j], coefficient(0)); });
        each([&](auto j) VIMTRT_ALWAYS_INLINE { state[state_of<N>(i, j)] = q[j]; });
        e = to_come;
      });
      delta = next_delta;
      decay = next_decay;
      __m512 y_sum = _mm512_add_ps(chain[0], chain[1]);
      if constexpr (N == 16) y_sum = _mm512_add_ps(y_sum, _mm512_add_ps(chain[2], chain[3]));
      sink(t, _mm512_fmadd_ps(u, skip_scale, _mm512_mul_ps(y_sum, y_scale)));
    }
  }
};

}  // namespace

const CpuKernels<BidirectionalScanParams> kBidirectionalScanAvx512 = kScanKernels<Avx512>;

}  // namespace vimtrt
