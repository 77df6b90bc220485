// QuantConv1dSiLU on a GPU (docs/numerics.md). README.md beside this file has the numbers.
//
// Grid:   x = an image's tiles of 128 channels times 4 * run tokens, y = images, in several launches beyond a grid's
//         limit.
// Block:  128 threads. A lane has 4 channels side by side, a warp all of the tile's channels and `run` tokens (1 to 16)
//         that follow each other; the launcher chooses `run`.
// Shared: the tile's rows of x, 128 bytes each, with three more on both sides, and 4 KiB of tables: 5.25 to 12.75 KiB.
//
// A register holds one channel's tokens t-3 .. t, a byte each. These are the forward window of token t and the
// backward window of token t-3, whose weights are mirrored, so a byte permutation makes the window of both, and one
// dp4a each the sum:
//
//   row of x, token t        window of channel c            u_forward[t]    from dp4a(window, weight[0])
//   | c | c+1 | c+2 | c+3 |  | t-4 | t-3 | t-2 | t-1 |      u_backward[t-3] from dp4a(window, weight[1] mirrored)
//     '----------.             .-----'     |     |
//                |             |     .-----'     |
//                |             |     |     .-----'
//                '-------------|-----|-----|-----.
//                            | t-3 | t-2 | t-1 |  t  |
//
// A warp's run of tokens takes run + 3 such windows:
//
//   newest token   first-3 .. first-1 | first  first+1  first+2 | first+3 .. first+run-1 |  ..  first+run+2
//                  only shifted in    | forward                 | forward and backward   |  backward
//
// Nothing needs the conversion unit, which is slow: an integer sum (below 2^17) that starts at the bits of kWhole
// (cuda_numerics.h) has the bits of kWhole plus the sum, and adding kWhole to a float rounds it.
//
// Entry i of table k lies at byte 256 k + (i ^ 16 (k % 8)): the lanes' channels use different tables, and their indices
// are mostly close to each other; without that, every table's entries of the same index would lie in the same bank.
#include <cstdint>

#include "plugins/common/cuda_copies.h"
#include "plugins/common/cuda_launch.h"
#include "plugins/common/cuda_numerics.h"
#include "plugins/common/cuda_tables.h"
#include "plugins/common/cuda_warp.h"
#include "plugins/quant_conv1d_silu/kernel.h"

namespace vimtrt {
namespace {

using cuda::kFarTables;
using cuda::kSharedTables;
using cuda::kTableBytes;
using cuda::kWarpThreads;
using cuda::limited;

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpThreads;
constexpr int kHalo = 3;  // tokens of a window besides the newest
constexpr int kLaneChannels = 4;
constexpr int kTileChannels = kWarpThreads * kLaneChannels;
constexpr int kMaxRun = 16;

// What the launcher adds to the operator's arguments; widths as in cuda_copies.h.
struct Launch {
  QuantConv1dSiluParams p;
  int64_t first_image = 0;
  int32_t groups = 0;  // of kTileChannels channels
  int32_t run = 1;
  int32_t x_width = 1, weight_width = 1, constants_width = 1, table_width = 1, u_width = 1;
};

// The block's part of an image; channels and tokens are those that exist.
struct Tile {
  int64_t first_row = 0;  // images times tokens
  int32_t first_token = 0, first_channel = 0;
  int tokens = 0, channels = 0;
};

// A lane's channels in one direction.
struct Direction {
  uint32_t weight[kLaneChannels];  // 4 bytes, the earliest token's first
  float scale[kLaneChannels];
  float bias[kLaneChannels];
  int32_t table_id[kLaneChannels];
};

// Copies

VIMTRT_DEVICE int unit_bytes(int width) { return width == 1 ? 4 : width; }

// The tile's rows of x and kHalo more on both sides; tokens outside the sequence are zeros.
VIMTRT_DEVICE void copy_rows(int8_t* shared, const Launch& launch, const Tile& tile) {
  const int unit = unit_bytes(launch.x_width);
  const int at = static_cast<int>(cuda::thread_x()) * unit, first = at / kTileChannels, byte = at % kTileChannels;
  const int rows_at_once = kThreads * unit / kTileChannels;
  const int bytes = limited(tile.channels - byte, unit);
  // Addresses stay inside of x even where no byte is read.
  const int64_t column = bytes > 0 ? tile.first_channel + byte : 0;
#pragma unroll 1
  for (int row = first; row < tile.tokens + 2 * kHalo; row += rows_at_once) {
    const int token = row - kHalo;  // within the tile
    const bool exists = token >= -tile.first_token && token < launch.p.tokens - tile.first_token;
    const int64_t source = exists ? (tile.first_row + token) * launch.p.x_stride + column : 0;
    cuda::copy_unit<16>(shared + row * kTileChannels + byte, launch.p.x + source, exists ? bytes : 0, launch.x_width);
  }
}

// The tables that the lane's channels use, a bit each (cuda_tables.h). Channels that do not exist use table 0.
VIMTRT_DEVICE uint32_t tables_of_lane(const Direction (&directions)[2]) {
  uint32_t used = 0;
#pragma unroll
  for (int d = 0; d < 2; ++d) {
#pragma unroll
    for (int c = 0; c < kLaneChannels; ++c) used |= cuda::table_bit(directions[d].table_id[c]);
  }
  return used;
}

// Entry i of a table lies at table_at(id) ^ i in shared memory.
VIMTRT_DEVICE uint32_t table_at(int32_t id) {
  return static_cast<uint32_t>(id) * kTableBytes | (static_cast<uint32_t>(id) & 7u) << 4;
}

VIMTRT_DEVICE void copy_tables(int8_t* shared, const Launch& launch, uint32_t used) {
  cuda::copy_tables<kThreads, 16>(
      launch.p.table, used, unit_bytes(launch.table_width), launch.table_width,
      [&](int byte) { return shared + (table_at(byte / kTableBytes) ^ byte % kTableBytes); });
}

// The first `exist` of four numbers and zeros behind them. `at_once`: they are aligned to their sum, and
// all exist or none.
template <class Four, class T>
VIMTRT_DEVICE void load_four(T (&to)[4], const T* from, int exist, bool at_once) {
  if (at_once) {
    const Four v = exist > 0 ? cuda::load(reinterpret_cast<const Four*>(from)) : Four{};
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
  } else {
    for (int c = 0; c < 4; ++c) to[c] = c < exist ? cuda::load(from + c) : T{};
  }
}

VIMTRT_DEVICE void load_weights(uint32_t (&to)[kLaneChannels], const int8_t* from, int exist, int width) {
  if (width >= 4) {
    load_four<uint4>(to, reinterpret_cast<const uint32_t*>(from), exist, width == 16);
  } else {
    for (int c = 0; c < kLaneChannels; ++c) to[c] = c < exist ? cuda::load_bytes(from + 4 * c, 4) : 0;
  }
}

VIMTRT_DEVICE void load_table_ids(Direction (&directions)[2], const Launch& launch, int64_t first_channel, int exist) {
#pragma unroll
  for (int d = 0; d < 2; ++d) {
    const int64_t at = d * static_cast<int64_t>(launch.p.channels) + first_channel;
    load_four<int4>(directions[d].table_id, launch.p.table_id + at, exist, launch.constants_width == 16);
  }
}

// The lane's other constants.
VIMTRT_DEVICE void load_constants(Direction (&directions)[2], const Launch& launch, int64_t first_channel, int exist) {
  const QuantConv1dSiluParams& p = launch.p;
#pragma unroll
  for (int d = 0; d < 2; ++d) {
    const int64_t at = d * static_cast<int64_t>(p.channels) + first_channel;
    load_weights(directions[d].weight, p.weight + 4 * at, exist, launch.weight_width);
    load_four<float4>(directions[d].scale, p.channel_scale + at, exist, launch.constants_width == 16);
    load_four<float4>(directions[d].bias, p.bias + at, exist, launch.constants_width == 16);
  }
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c)
    directions[1].weight[c] = cuda::byte_permute(directions[1].weight[c], 0, 0x0123);
}

// Arithmetic

// What a lane needs for its run of tokens.
struct Work {
  Direction directions[2];
  const int8_t* row;     // of x, in shared memory, the lane's channels of the next token to shift in
  const int8_t* tables;  // tables 0 .. kSharedTables - 1 in shared memory
  const int8_t* far;     // all tables, if one of the block's is not among those
  int8_t* u[2];          // the lane's channels of the next token of either direction
  int32_t channels;
  int exist;  // channels of the lane
  int u_width;
  uint32_t window[kLaneChannels];
};

VIMTRT_DEVICE void store_bytes(int8_t* u, uint32_t word, int exist) {
  for (int c = 0; c < kLaneChannels; ++c) {
    if (c < exist) u[c] = static_cast<int8_t>(word >> (8 * c));
  }
}

// One token of one direction, from the windows. `Plain`: every table is in shared memory, and u takes whole words.
template <bool Plain>
VIMTRT_DEVICE void finish(Work& work, int d) {
  const Direction& k = work.directions[d];
  uint32_t u[kLaneChannels];
#pragma unroll
  for (int c = 0; c < kLaneChannels; ++c) {
    const int32_t sum =
        cuda::dp4a(static_cast<int32_t>(work.window[c]), static_cast<int32_t>(k.weight[c]), cuda::kWholeBits);
    const uint32_t index =
        cuda::quantized_u8(fmaf(from_bits(static_cast<uint32_t>(sum)) - cuda::kWhole, k.scale[c], k.bias[c])) & 255u;
    if (Plain || work.far == nullptr) {
      u[c] = static_cast<uint8_t>(work.tables[table_at(k.table_id[c]) ^ index]);
    } else {
      u[c] = static_cast<uint8_t>(cuda::load(work.far + static_cast<int64_t>(k.table_id[c]) * kTableBytes + index));
    }
  }
  const uint32_t word =
      cuda::byte_permute(cuda::byte_permute(u[0], u[1], 0x0040), cuda::byte_permute(u[2], u[3], 0x0040), 0x5410);
  if (Plain || work.u_width >= kLaneChannels) {
    *reinterpret_cast<uint32_t*>(work.u[d]) = word;
  } else {
    store_bytes(work.u[d], word, work.exist);
  }
  work.u[d] += work.channels;
}

// The next token becomes the newest byte of every window, the others move up.
VIMTRT_DEVICE void shift_in(Work& work) {
  const uint32_t x = *reinterpret_cast<const uint32_t*>(work.row);
#pragma unroll
  for (unsigned c = 0; c < kLaneChannels; ++c)
    work.window[c] = cuda::byte_permute(work.window[c], x, 0x4321 + (c << 12));
  work.row += kTileChannels;
}

// Both directions of `tokens` tokens.
template <bool Plain>
VIMTRT_DEVICE void convolve(Work& work, int tokens) {
#pragma unroll
  for (int t = 0; t < kHalo; ++t) shift_in(work);
  int t = 0;
#pragma unroll 1
  for (; t < kHalo; ++t) {
    shift_in(work);
    if (t < tokens) finish<Plain>(work, 0);
  }
#pragma unroll 1
  for (; t < tokens; ++t) {
    shift_in(work);
    finish<Plain>(work, 0);
    finish<Plain>(work, 1);
  }
#pragma unroll 1
  for (; t < tokens + kHalo; ++t) {
    shift_in(work);
    finish<Plain>(work, 1);
  }
}

VIMTRT_KERNEL void quant_conv1d_silu_kernel(Launch launch) {
  const QuantConv1dSiluParams& p = launch.p;
  const unsigned groups = static_cast<unsigned>(launch.groups);
  Tile tile;
  tile.first_token = static_cast<int32_t>(cuda::block_x() / groups) * kWarps * launch.run;
  tile.first_channel = static_cast<int32_t>(cuda::block_x() % groups) * kTileChannels;
  tile.first_row = (launch.first_image + cuda::block_y()) * p.tokens + tile.first_token;
  tile.tokens = limited(p.tokens - tile.first_token, kWarps * launch.run);
  tile.channels = limited(p.channels - tile.first_channel, kTileChannels);
  const int lane = cuda::lane(), warp = cuda::warp();
  const int64_t first_channel = tile.first_channel + lane * kLaneChannels;

  Work work;
  work.exist = tile.channels - lane * kLaneChannels;
  load_table_ids(work.directions, launch, first_channel, work.exist);
  int8_t* const tables = cuda::dynamic_shared<int8_t>();
  int8_t* const rows = tables + kSharedTables * kTableBytes;
  copy_rows(rows, launch, tile);
  load_constants(work.directions, launch, first_channel, work.exist);
  const uint32_t used = cuda::or_of_warp(tables_of_lane(work.directions));
  const bool is_near = (used & kFarTables) == 0;
  if (is_near) copy_tables(tables, launch, used);
  cuda::commit_copies();
  cuda::wait_copies<0>();
  cuda::sync_block();

  const int first = warp * launch.run, tokens = limited(tile.tokens - first, launch.run);
  if (tokens == 0 || work.exist <= 0) return;  // no warp-wide call follows
  work.row = rows + first * kTileChannels + lane * kLaneChannels;
  work.tables = tables;
  work.far = is_near ? nullptr : p.table;
  for (int d = 0; d < 2; ++d) work.u[d] = p.u[d] + (tile.first_row + first) * p.channels + first_channel;
  work.channels = p.channels;
  work.u_width = launch.u_width;
  for (uint32_t& window : work.window) window = 0;
  if (is_near && launch.u_width >= kLaneChannels) {
    convolve<true>(work, tokens);
  } else {
    convolve<false>(work, tokens);
  }
}

// The launch

using cuda::address;
using cuda::ceil_div;
using cuda::width_of;

int64_t groups_of(const QuantConv1dSiluParams& p) { return ceil_div(p.channels, kTileChannels); }

int64_t chunks_of(const QuantConv1dSiluParams& p, int run) { return ceil_div(p.tokens, kWarps * run); }

// The run with the smallest product of rounds, of as many blocks as an A100 has processors, and the time of a block:
// its run, and what every run has besides (the windows behind it, constants, tables), reckoned as four tokens. No
// result depends on it.
int best_run(const QuantConv1dSiluParams& p) {
  constexpr int64_t kProcessors = 108, kFixed = 4;
  int best = 1;
  int64_t least = INT64_MAX;
  for (int run = 1; run <= kMaxRun; ++run) {
    const int64_t blocks = p.batch * groups_of(p) * chunks_of(p, run);
    const int64_t time = ceil_div(blocks, kProcessors) * (run + kFixed);
    if (time < least) {
      least = time;
      best = run;
    }
  }
  return best;
}

}  // namespace

int quant_conv1d_silu_launch(const QuantConv1dSiluParams& p, cuda::Stream stream) {
  if (p.batch == 0) return 0;
  Launch launch;
  launch.p = p;
  launch.groups = static_cast<int32_t>(groups_of(p));
  launch.run = best_run(p);
  const uint64_t row = static_cast<uint64_t>(p.channels), row_of_numbers = row * sizeof(float);
  launch.x_width = width_of(address(p.x) | static_cast<uint64_t>(p.x_stride));
  launch.weight_width = width_of(address(p.weight) | row_of_numbers);
  launch.constants_width = width_of(address(p.channel_scale) | address(p.bias) | address(p.table_id) | row_of_numbers);
  launch.table_width = width_of(address(p.table));
  launch.u_width = width_of(address(p.u[0]) | address(p.u[1]) | row);

  // An image has far fewer tiles than a grid may have in x: with that many it would fill 17 TB.
  const int64_t tiles = launch.groups * chunks_of(p, launch.run);
  const size_t shared_bytes =
      kSharedTables * kTableBytes + static_cast<size_t>(kWarps * launch.run + 2 * kHalo) * kTileChannels;
  cuda::Grid grid{static_cast<unsigned>(tiles)};
  return cuda::launch_in_parts(p.batch, cuda::kMaxGridY, [&](int64_t first_image, int64_t images) {
    launch.first_image = first_image;
    grid.y = static_cast<unsigned>(images);
    return cuda::launch(quant_conv1d_silu_kernel, grid, kThreads, shared_bytes, stream, launch);
  });
}

}  // namespace vimtrt
