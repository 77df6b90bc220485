// What the norms share in plain C++: the contract's 32 partial sums. Internal linkage, as in threads.h.
#pragma once

#include <cstdint>

#include "plugins/common/threads.h"

namespace vimtrt {
namespace {

constexpr int kPartialSums = 32;
constexpr int64_t kPieceRows = 16;  // that a thread takes at a time: some microseconds

// p[j] += p[j + s] for s = 16, 8, 4, 2, 1; p[0].
[[maybe_unused]] float tree_sum(float (&partial)[kPartialSums]) {
  for (int s = kPartialSums / 2; s > 0; s /= 2) {
    for (int j = 0; j < s; ++j) partial[j] += partial[j + s];
  }
  return partial[0];
}

// 1 / sqrt(sum / features + epsilon)
[[maybe_unused]] float inverse_root_of(float sum, int32_t features, float epsilon) {
  return 1.0f / __builtin_sqrtf(sum / static_cast<float>(features) + epsilon);
}

// Calls normalize_row(params, row) for every row; a template's argument, so that it is inlined.
template <auto normalize_row, class Params>
void run_rows(const Params& params, int threads) {
  run_workers(threads, RangeCut(params.rows, kPieceRows), [&](int, auto& pieces) {
    for (WorkRange rows; pieces.next(rows);) {
      for (int64_t row = rows.begin; row < rows.end; ++row) normalize_row(params, row);
    }
  });
}

}  // namespace
}  // namespace vimtrt
