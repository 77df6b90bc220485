// Lookup tables of 256 int8 entries, of which every channel names one. A block has tables 0 .. kSharedTables - 1, those
// of them that its channels use, in shared memory; further ones are read through the first-level cache.
#pragma once

#include <cstdint>

#include "plugins/common/cuda_copies.h"

namespace vimtrt {
namespace cuda {

constexpr int kTableBytes = 256;
constexpr int kSharedTables = 16;
constexpr uint32_t kFarTables = 1u << 31;

// What channels use, or-ed: bit i for table i < kSharedTables, kFarTables for a further one.
VIMTRT_DEVICE uint32_t table_bit(int32_t id) { return id < kSharedTables ? 1u << id : kFarTables; }

// The tables whose bits are set in `used`, by all of the block's `Threads` threads, in units of `unit` bytes, at most
// `Most`. place(b) is where byte b of the tables goes; a unit stays in one piece.
template <int Threads, int Most, class Place>
VIMTRT_DEVICE void copy_tables(const int8_t* tables, uint32_t used, int unit, int width, const Place& place) {
#pragma unroll 1
  for (int byte = static_cast<int>(thread_x()) * unit; byte < kSharedTables * kTableBytes; byte += Threads * unit) {
    if (used >> (byte / kTableBytes) & 1u) copy_unit<Most>(place(byte), tables + byte, unit, width);
  }
}

}  // namespace cuda
}  // namespace vimtrt
