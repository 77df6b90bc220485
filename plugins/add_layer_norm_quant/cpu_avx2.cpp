// AddLayerNormQuant with AVX2.
#include "plugins/add_layer_norm_quant/cpu.h"
#include "plugins/common/norm.h"
#include "plugins/common/norm_avx2.h"
#include "plugins/common/threads.h"

namespace vimtrt {
namespace {

// Eight features; 0 in lanes outside the mask.
__m256 load(const float* source, __m256i mask) { return _mm256_maskload_ps(source, mask); }

// Distances from the mean; 0 outside the mask, and fma(0, 0, p) is p.
__m256 distance(const float* out, __m256i mask, __m256 mean) {
  return _mm256_and_ps(_mm256_sub_ps(load(out, mask), mean), _mm256_castsi256_ps(mask));
}

void normalize_row(const AddLayerNormQuantParams& p, int64_t row) {
  const int64_t token = row % p.tokens;
  const float* hidden = p.hidden + row * p.features;
  const float* residual = p.residual + (p.residual_is_shared ? token : row) * p.features;
  float* out = p.residual_out + row * p.features;
  int8_t* y = p.y + row * p.features;
  const float features = static_cast<float>(p.features);

  __m256 sums[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
  for (int32_t i = 0; i < p.features; i += 32) {
    for (int32_t j = 0; j < 4 && i + 8 * j < p.features; ++j) {
      const int32_t at = i + 8 * j;
      const __m256i mask = lanes(p.features - at);
      const __m256 r = _mm256_add_ps(load(residual + at, mask), load(hidden + at, mask));
      _mm256_maskstore_ps(out + at, mask, r);
      sums[j] = _mm256_add_ps(sums[j], r);
    }
  }
  const __m256 mean = _mm256_set1_ps(tree_sum(sums) / features);
  for (__m256& sum : sums) sum = _mm256_setzero_ps();
  for (int32_t i = 0; i < p.features; i += 32) {
    for (int32_t j = 0; j < 4 && i + 8 * j < p.features; ++j) {
      const __m256 d = distance(out + i + 8 * j, lanes(p.features - i - 8 * j), mean);
      sums[j] = _mm256_fmadd_ps(d, d, sums[j]);
    }
  }
  const __m256 k = _mm256_set1_ps(inverse_root(tree_sum(sums), features, p.epsilon));
  const __m256 inv_scale = _mm256_set1_ps(p.inv_scale_tok[token]);
  for (int32_t i = 0; i < p.features; i += 8) {
    const __m256i mask = lanes(p.features - i);
    const __m256 scaled = _mm256_mul_ps(distance(out + i, mask, mean), k);
    const __m256 v = _mm256_mul_ps(_mm256_fmadd_ps(scaled, load(p.gain + i, mask), load(p.shift + i, mask)), inv_scale);
    if (i + 8 <= p.features) {
      store_quantized(y + i, v);
    } else {
      store_quantized(y + i, p.features - i, v);
    }
  }
}

void run(const AddLayerNormQuantParams& p, const void*, void*, int threads) {
  run_workers(threads, RangeCut(p.rows, kPieceRows), [&](int, auto& pieces) {
    for (WorkRange rows; pieces.next(rows);) {
      for (int64_t row = rows.begin; row < rows.end; ++row) normalize_row(p, row);
    }
  });
}

}  // namespace

const CpuKernels<AddLayerNormQuantParams> kAddLayerNormQuantAvx2 = {no_packed_bytes, no_pack, no_scratch_bytes, run};

}  // namespace vimtrt
