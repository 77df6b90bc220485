// AddLayerNormQuant with AVX2.
#include "plugins/add_layer_norm_quant/cpu.h"
#include "plugins/common/norm.h"
#include "plugins/common/norm_avx2.h"
#include "plugins/common/unroll.h"

namespace vimtrt {
namespace {

// Eight features that are all there, or the first of `mask` and zeros.
struct Whole {
  __m256 load(const float* source) const { return _mm256_loadu_ps(source); }
  void store(float* target, __m256 value) const { _mm256_storeu_ps(target, value); }
  __m256 keep(__m256 value) const { return value; }
};
struct Part {
  __m256i mask;
  __m256 load(const float* source) const { return _mm256_maskload_ps(source, mask); }
  void store(float* target, __m256 value) const { _mm256_maskstore_ps(target, mask, value); }
  __m256 keep(__m256 value) const { return _mm256_and_ps(value, _mm256_castsi256_ps(mask)); }
};

// body(i, j, lanes) for eight features from i on, whose partial sums are those of register j.
template <class Body>
VIMTRT_ALWAYS_INLINE inline void each(int32_t features, const Body& body) {
  int32_t i = 0;
  for (; i + 32 <= features; i += 32) {
    for (int j = 0; j < 4; ++j) body(i + 8 * j, j, Whole{});
  }
  for (int j = 0; i < features; ++j, i += 8) body(i, j, Part{lanes(features - i)});
}

void normalize_row(const AddLayerNormQuantParams& p, int64_t row) {
  const int64_t token = row % p.tokens;
  const float* hidden = p.hidden + row * p.features;
  const float* residual = p.residual + (p.residual_is_shared ? token : row) * p.features;
  const float *gain = p.gain, *shift = p.shift;
  float* out = p.residual_out + row * p.features;
  int8_t* y = p.y + row * p.features;
  const int32_t count = p.features;
  const float features = static_cast<float>(count);

  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  each(count, [&](int32_t i, int j, const auto& eight) VIMTRT_ALWAYS_INLINE {
    const __m256 r = _mm256_add_ps(eight.load(residual + i), eight.load(hidden + i));
    eight.store(out + i, r);
    sums[j] = _mm256_add_ps(sums[j], r);
  });
  const __m256 mean = _mm256_set1_ps(tree_sum(sums) / features);
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  each(count, [&](int32_t i, int j, const auto& eight) VIMTRT_ALWAYS_INLINE {
    // 0 where there is no feature, and fma(0, 0, p) is p.
    const __m256 d = eight.keep(_mm256_sub_ps(eight.load(out + i), mean));
    sums[j] = _mm256_fmadd_ps(d, d, sums[j]);
  });
  const __m256 k = _mm256_set1_ps(inverse_root(tree_sum(sums), features, p.epsilon));
  const __m256 inv_scale = _mm256_set1_ps(p.inv_scale_tok[token]);
  each(count, [&](int32_t i, int, const auto& eight) VIMTRT_ALWAYS_INLINE {
    const __m256 scaled = _mm256_mul_ps(_mm256_sub_ps(eight.load(out + i), mean), k);
    const __m256 v = _mm256_mul_ps(_mm256_fmadd_ps(scaled, eight.load(gain + i), eight.load(shift + i)), inv_scale);
    if (count - i >= 8) {
      store_quantized(y + i, v);
    } else {
      store_quantized(y + i, count - i, v);
    }
  });
}

void run(const AddLayerNormQuantParams& p, const void*, void*, int threads) { run_rows<normalize_row>(p, threads); }

}  // namespace

const CpuKernels<AddLayerNormQuantParams> kAddLayerNormQuantAvx2 = {no_packed_bytes, no_pack, no_scratch_bytes, run};

}  // namespace vimtrt
