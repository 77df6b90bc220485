// Table lookups of 64 channels side by side with AVX-512 VBMI. Internal linkage, as in threads.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace vimtrt {
namespace {

// The different tables of a block of 64 channels; with more than kMax, `count` is kMax + 1 and the block is looked up byte by byte.
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

// Replaces the bytes of `count` rows, `stride` apart, by entries of their channels' tables [T, 256]; channels outside `mask` do not exist,
// those without a table stay as they are. Bytes are q, or q + 128 where kBiased. A table is four registers, of which a byte's low 7 bits
// pick in the half that its sign chooses; the bytes picked replace the indices in place, each channel's once.
template <bool kBiased>
__attribute__((target("avx512vbmi"))) void look_up_rows(const int8_t* tables, const BlockTables& block, __mmask64 mask, int64_t count,
                                                        int64_t stride, int8_t* rows) {
  constexpr int kTogether = 4;
  for (int64_t first = 0; first < count; first += kTogether) {
    __m512i v[kTogether];
    __mmask64 negative[kTogether];
    int8_t* row[kTogether];  // behind the last: the last once more, with the same result
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) {
      row[i] = rows + (first + i < count ? first + i : count - 1) * stride;
      v[i] = mask == ~__mmask64{0} ? _mm512_loadu_si512(row[i]) : _mm512_maskz_loadu_epi8(mask, row[i]);
      negative[i] = _mm512_movepi8_mask(v[i]);
    }
    for (int k = 0; k < block.count; ++k) {
      const int8_t* table = tables + static_cast<int64_t>(block.id[k]) * 256;
      const int8_t* if_negative = table + (kBiased ? 128 : 0);  // of the byte as it stands
      const int8_t* if_positive = table + (kBiased ? 0 : 128);
      const __m512i a = _mm512_loadu_si512(if_negative), b = _mm512_loadu_si512(if_negative + 64);
      const __m512i c = _mm512_loadu_si512(if_positive), d = _mm512_loadu_si512(if_positive + 64);
      const __mmask64 mine = _cvtu64_mask64(block.channels[k]);
#pragma GCC unroll 4
      for (int i = 0; i < kTogether; ++i) {
        v[i] = _mm512_mask2_permutex2var_epi8(a, v[i], _kand_mask64(negative[i], mine), b);
        v[i] = _mm512_mask2_permutex2var_epi8(c, v[i], _kandn_mask64(negative[i], mine), d);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) {
      if (mask == ~__mmask64{0}) {
        _mm512_storeu_si512(row[i], v[i]);
      } else {
        _mm512_mask_storeu_epi8(row[i], mask, v[i]);
      }
    }
  }
}

}  // namespace
}  // namespace vimtrt
