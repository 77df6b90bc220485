// Table lookups of 64 channels side by side with AVX-512 VBMI. Internal linkage, as in threads.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace vimtrt {
namespace {

// The different tables of a block of 64 channels; with more than kMax, `count` is kMax + 1 and the block is looked up
// byte by byte.
struct BlockTables {
  static constexpr int kMax = 8;
  int32_t count = 0;
  int32_t id[kMax] = {};
  uint64_t channels[kMax] = {};  // a bit for each that uses it

  void add(int channel, int32_t table_id) {
    int k = 0;
    while (k < count && k < kMax && id[k] != table_id) ++k;
    if (k == kMax) {
      count = kMax + 1;
      return;
    }
    if (k == count) id[count++] = table_id;
    channels[k] |= uint64_t{1} << channel;
  }
};

// Replaces the bytes of `count` rows, `stride` apart, by entries of their channels' tables [T, 256]; channels outside
// `mask` do not exist, those without a table stay as they are. Bytes are q, or q + 128 where kBiased. A table is four
// registers, two halves: a byte's sign chooses the half, its low 7 bits pick in it. Each half has a copy of the row,
// where the bytes picked replace the indices in place, each channel's once; the signs choose between the copies at the
// end, so no table needs masks of its own for either half.
template <bool kBiased>
__attribute__((target("avx512vbmi"))) void look_up_rows(const int8_t* tables, const BlockTables& block, __mmask64 mask,
                                                        int64_t count, int64_t stride, int8_t* rows) {
  constexpr int kTogether = 4;
  for (int64_t first = 0; first < count; first += kTogether) {
    __m512i if_negative[kTogether], if_positive[kTogether];  // of the byte as it stands
    __mmask64 negative[kTogether];
    int8_t* row[kTogether];  // behind the last: the last once more, with the same result
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) {
      row[i] = rows + (first + i < count ? first + i : count - 1) * stride;
      if_negative[i] = if_positive[i] =
          mask == ~__mmask64{0} ? _mm512_loadu_si512(row[i]) : _mm512_maskz_loadu_epi8(mask, row[i]);
      negative[i] = _mm512_movepi8_mask(if_negative[i]);
    }
    for (int k = 0; k < block.count; ++k) {
      const int8_t* table = tables + static_cast<int64_t>(block.id[k]) * 256;
      const int8_t* low = table + (kBiased ? 128 : 0);
      const int8_t* high = table + (kBiased ? 0 : 128);
      const __m512i a = _mm512_loadu_si512(low), b = _mm512_loadu_si512(low + 64);
      const __m512i c = _mm512_loadu_si512(high), d = _mm512_loadu_si512(high + 64);
      const __mmask64 mine = _cvtu64_mask64(block.channels[k]);
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) {
        if_negative[i] = _mm512_mask2_permutex2var_epi8(a, if_negative[i], mine, b);
        if_positive[i] = _mm512_mask2_permutex2var_epi8(c, if_positive[i], mine, d);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) {
      const __m512i found = _mm512_mask_mov_epi8(if_positive[i], negative[i], if_negative[i]);
      if (mask == ~__mmask64{0}) {
        _mm512_storeu_si512(row[i], found);
      } else {
        _mm512_mask_storeu_epi8(row[i], mask, found);
      }
    }
  }
}

}  // namespace
}  // namespace vimtrt
