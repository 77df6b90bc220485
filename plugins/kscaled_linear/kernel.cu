// KScaledLinear on a GPU: y = epilogue(x * weight^T) with int8 tensor cores (docs/numerics.md). README.md beside this
// file has the numbers.
//
// Grid:   x = tiles of rows (images times tokens), y = tiles of output channels; shapes beyond a grid's limits take
//         several launches.
// Block:  4 warps as 2 x 2, each one quarter of the tile; 8 as 2 x 4 for 128 x 128 with an int8 output, whose epilogue
//         needs the registers.
// Shared: kStages * (kRows + kColumns) * kDepth bytes: 48 KiB (128 x 128), 36 KiB (128 x 64, 32 x 64), 32 KiB (64 x 64,
//         32 x 32).
//
//             kColumns output channels        a stage holds kDepth input channels of every row and column of the tile:
//          .-----------------------------.
//          |    warp 0    |    warp 1    |        x: kRows x kDepth | weight: kColumns x kDepth
//   kRows  |--------------+--------------|
//   of x   |    warp 2    |    warp 3    |    copies of stages k + 1 .. k + kStages - 1 run while stage k is
//   multiplied;
//          '-----------------------------'    the epilogue's constants and its tables travel as one more stage.
//
// Shared memory, in units of 16 bytes ("chunks", here c0 ..). ldmatrix reads one chunk of 8 rows that follow each
// other, and these must lie in 8 different groups of 4 banks. A row's chunks are therefore stored in the order
// chunk ^ phase(row):
//
//   kDepth = 64   banks 0-3  4-7  8-11 12-15 16-19 20-23 24-27 28-31   kDepth = 128   banks 0-3 4-7  ..          28-31
//     rows 0, 1       c0   c1   c2   c3  |  c0    c1    c2    c3         row 0          c0  c1  c2  c3  c4  c5  c6  c7
//     rows 2, 3       c1   c0   c3   c2  |  c1    c0    c3    c2         row 1          c1  c0  c3  c2  c5  c4  c7  c6
//     rows 4, 5       c2   c3   c0   c1  |  c2    c3    c0    c1         row 2          c2  c3  c0  c1  c6  c7  c4  c5
//     rows 6, 7       c3   c2   c1   c0  |  c3    c2    c1    c0         ..
//
// Copies write whole rows side by side and fill all banks too; only the last 32 channels of a depth that ends there,
// copied in small units, meet two or four in a bank.
//
// The tensor core leaves a thread with channels 2t, 2t + 1 of every 8 (t = lane % 4). The order of the channels within
// a warp's part is free, so the weights are laid into shared memory such that those are kRun channels side by side, and
// a result goes out in words of up to 16 bytes without a detour:
//
//   int8, 64 x 64 per warp   shared rows  0..7   8..15   ..   56..63
//                            channels     0 1    2 3          14 15     thread t = 0 holds channels  0..15, one uint4
//                                        16 17  18 19         30 31     thread t = 1 holds channels 16..31
//                                        32 33  34 35         46 47     ..
//                                        48 49  50 51         62 63
//
// fp32: the same over 16 shared rows, 4 channels of a thread, one float4.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>

#include "plugins/common/cuda_copies.h"
#include "plugins/common/cuda_launch.h"
#include "plugins/common/cuda_numerics.h"
#include "plugins/common/cuda_tables.h"
#include "plugins/common/cuda_warp.h"
#include "plugins/kscaled_linear/kernel.h"

namespace vimtrt {
namespace {

using cuda::kFarTables;
using cuda::kSharedTables;
using cuda::kTableBytes;
using cuda::kWarpThreads;

constexpr int kChunkBytes = 16;
constexpr int kStepDepth = 32;  // input channels of one mma

// How many blocks the compiler makes room for. From compute capability 10.0 on it takes some registers more, and three
// large ones would spill.
constexpr int blocks_that_fit(int blocks) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  return blocks < 2 ? blocks : 2;
#else
  return blocks;
#endif
}

// Down x Across warps share a tile; registers are limited such that Blocks of them fit a processor.
template <int Rows, int Columns, int Depth, int Stages, int Down = 2, int Across = 2, int Blocks = 1>
struct Tile {
  static constexpr int kRows = Rows, kColumns = Columns, kDepth = Depth, kStages = Stages;
  static constexpr int kWarpsAcross = Across, kThreads = Down * Across * kWarpThreads, kBlocks = Blocks;
  static constexpr int kWarpRows = Rows / Down, kWarpColumns = Columns / Across;
  static constexpr int kDown = kWarpRows / 16, kAcross = kWarpColumns / 8;  // mma tiles of a warp
  static constexpr int kStageBytes = (Rows + Columns) * Depth;
  static constexpr int kSharedBytes = Stages * kStageBytes;
};

// Microseconds of a launch in which a processor has one block, and of each further one, by the depth: those after the
// first run beside it. Measured on an H200 and fitted (README.md); on another GPU it is their ratios that count.
struct Cost {
  double first, first_of_depth, next, next_of_depth;
};

template <class Shape_>
struct Choice {
  using Shape = Shape_;
  Cost cost;
};

// The tiles that a launch chooses from. An int8 output costs more in the epilogue, an fp32 one in the stores.
template <class Output>
struct Choices;

template <>
struct Choices<int8_t> {
  static constexpr Choice<Tile<32, 32, 128, 4>> kSmall{{2.43, 0.0021, 0.60, 0.0006}};
  static constexpr Choice<Tile<32, 64, 128, 3>> kFlat{{2.84, 0.0025, 0.71, 0.0010}};
  static constexpr Choice<Tile<128, 64, 64, 3>> kMedium{{4.47, 0.0070, 1.33, 0.0034}};
  static constexpr Choice<Tile<128, 128, 64, 3, 2, 4, 2>> kLarge{{5.37, 0.0081, 2.66, 0.0060}};
};

template <>
struct Choices<float> {
  static constexpr Choice<Tile<32, 32, 128, 4>> kSmall{{2.17, 0.0019, 0.27, 0.0009}};
  static constexpr Choice<Tile<32, 64, 128, 3>> kFlat{{2.18, 0.0027, 0.27, 0.0013}};
  static constexpr Choice<Tile<64, 64, 64, 4>> kMedium{{2.73, 0.0054, 0.30, 0.0023}};
  static constexpr Choice<Tile<128, 128, 64, 3, 2, 2, 3>> kLarge{{4.62, 0.0108, 0.54, 0.0059}};
};

// Channels side by side in a thread's results.
template <class Shape, class Output>
constexpr int kRun = sizeof(Output) == 1 ? 2 * Shape::kAcross : 4;

// What the launcher adds to the operator's arguments; widths as in cuda_copies.h.
struct Launch {
  KScaledLinearParams p;
  int64_t first_row_tile = 0;
  int32_t first_column_tile = 0;
  int32_t x_width = 1, weight_width = 1, table_width = 1, y_width = 1;
};

// Two launches in one that differ in nothing but what they point to: block_z() says which of them a block belongs to.
// What such a kernel reads is at no known place of the parameters, for which it takes up to 20 registers more. So it is
// one of its own, of the tiles that small batches take: of larger ones a single launch fills the GPU.
struct Pair {
  Launch of[2];
};

VIMTRT_DEVICE const Launch& launch_of_block(const Launch& launch) { return launch; }
VIMTRT_DEVICE const Launch& launch_of_block(const Pair& pair) { return pair.of[cuda::block_z()]; }

// The block's part of the output; rows and columns are those that exist.
struct Part {
  int64_t first_row = 0;
  int32_t first_column = 0;
  int rows = 0, columns = 0;
};

// A matrix of int8, depth values in a row, and the first of its rows that the block reads.
struct Operand {
  const int8_t* first = nullptr;
  int64_t stride = 0;
  int rows = 0;
  int depth = 0;
  int width = 1;
  const int8_t* of_thread = nullptr;  // the first that this thread copies in units of 16 bytes
};

// The stage after the last: what the epilogue reads.
template <class Shape>
struct Constants {
  float channel_scale[Shape::kColumns];
  float bias[Shape::kColumns];
  int32_t table_id[Shape::kColumns];
  float token_scale[Shape::kRows];
  float out_token_scale[Shape::kRows];
  int8_t tables[(1 + kSharedTables) * kTableBytes];  // table -1, the identity, then 0, 1, ..
};

template <class Shape>
using Sums = int32_t[Shape::kDown][Shape::kAcross][4];

// Offset of a byte in a shared matrix with Depth bytes in a row. Like shared_row it only moves bits: place(a ^ b) =
// place(a) ^ place(b).
template <unsigned Depth>
VIMTRT_DEVICE constexpr unsigned place(unsigned row, unsigned byte) {
  constexpr unsigned kChunks = Depth / kChunkBytes;
  const unsigned phase = row * kChunks / 8 % kChunks;
  return row * Depth + (byte ^ phase * kChunkBytes);
}

// The shared row of a channel, so that a thread's results are Run channels side by side. Run = 2 changes nothing.
template <unsigned Run>
VIMTRT_DEVICE constexpr unsigned shared_row(unsigned channel) {
  const unsigned group = channel / (4 * Run), thread = channel / Run % 4, pair = channel % Run / 2;
  return group * 4 * Run + pair * 8 + thread * 2 + channel % 2;
}

// Whether one step is all that is left of the depth at k. The rest of that stage is then neither filled nor multiplied.
VIMTRT_DEVICE bool is_last_step(int depth, int k) { return depth - k <= kStepDepth; }

// Values k .. k + Depth - 1 of Rows rows, zeros beyond the depth. Rows that do not exist keep what was there: their
// results are not stored.
template <class Shape, int Rows, int Run>
VIMTRT_DEVICE void copy_wide(int8_t* shared, const Operand& from, int k) {
  constexpr unsigned kRowsAtOnce = Shape::kThreads * kChunkBytes / Shape::kDepth;
  const unsigned row = cuda::thread_x() * kChunkBytes / Shape::kDepth,
                 byte = cuda::thread_x() * kChunkBytes % Shape::kDepth;
  const bool exists = k + static_cast<int>(byte) < from.depth;
  const int8_t* source = exists ? from.of_thread + k : from.first;
  const int64_t step = exists ? kRowsAtOnce * from.stride : 0;
#pragma unroll
  for (unsigned i = 0; i < Rows / kRowsAtOnce; ++i) {
    const unsigned at =
        place<Shape::kDepth>(shared_row<Run>(row), byte) ^ place<Shape::kDepth>(shared_row<Run>(i * kRowsAtOnce), 0);
    if (row + i * kRowsAtOnce < static_cast<unsigned>(from.rows))
      cuda::copy_async<16>(shared + at, source, exists ? 16 : 0);
    source += step;
  }
}

// The same in units of 8 or 4 bytes or byte by byte.
template <class Shape, int Rows, int Run>
VIMTRT_DEVICE void copy_narrow(int8_t* shared, const Operand& from, int k) {
  const bool last = is_last_step(from.depth, k);
  const unsigned unit = from.width >= 8 ? 8 : 4;
  const unsigned at = cuda::thread_x() * unit;
  const unsigned first = last ? at / kStepDepth : at / Shape::kDepth;
  const unsigned byte = last ? at % kStepDepth : at % Shape::kDepth;
  const unsigned rows_at_once = last ? Shape::kThreads * unit / kStepDepth : Shape::kThreads * unit / Shape::kDepth;
  const int left = from.depth - k - static_cast<int>(byte);
  const int bytes = cuda::limited(left, static_cast<int>(unit));
  const int8_t* source = from.first + (bytes > 0 ? first * from.stride + k + byte : 0);
  const int64_t step = bytes > 0 ? rows_at_once * from.stride : 0;
#pragma unroll 1
  for (unsigned row = first; row < static_cast<unsigned>(from.rows); row += rows_at_once) {
    cuda::copy_unit<8>(shared + place<Shape::kDepth>(shared_row<Run>(row), byte), source, bytes, from.width);
    source += step;
  }
}

template <class Shape, int Rows, int Run>
VIMTRT_DEVICE void copy_matrix(int8_t* shared, const Operand& from, int k) {
  if (from.width == 16) {
    copy_wide<Shape, Rows, Run>(shared, from, k);
  } else {
    copy_narrow<Shape, Rows, Run>(shared, from, k);
  }
}

// The tables that this lane's share of the block's channels use, a bit each (cuda_tables.h).
VIMTRT_DEVICE uint32_t tables_of_lane(const KScaledLinearParams& p, const Part& part) {
  uint32_t used = 0;
  if (p.table == nullptr) return used;
#pragma unroll 1
  for (int c = cuda::lane(); c < part.columns; c += kWarpThreads) {
    const int32_t id = cuda::load(p.table_id + part.first_column + c);
    // table_bit(id) written out: with the call, nvcc 13.0 loads the scales in the epilogue in other widths.
    if (id >= 0) used |= id < kSharedTables ? 1u << id : kFarTables;
  }
  return used;
}

// Behind the identity, which is table -1, the tables that are used.
template <class Shape>
VIMTRT_DEVICE void copy_tables(int8_t* shared, const int8_t* table, uint32_t used, int width) {
  cuda::copy_tables<Shape::kThreads, 8>(table, used, width >= 8 ? 8 : 4, width,
                                        [&](int byte) { return shared + kTableBytes + byte; });
  for (int i = static_cast<int>(cuda::thread_x()); i < kTableBytes; i += Shape::kThreads)
    shared[i] = static_cast<int8_t>(i - 128);
}

template <class T>
VIMTRT_DEVICE void copy_number(T* shared, const T* global, int at, bool exists) {
  cuda::copy_async<4>(shared, exists ? global + at : global, exists ? 4 : 0);
}

template <class Shape>
VIMTRT_DEVICE void copy_constants(Constants<Shape>* to, const Launch& launch, const Part& part, uint32_t used) {
  const KScaledLinearParams& p = launch.p;
  for (int c = static_cast<int>(cuda::thread_x()); c < Shape::kColumns; c += Shape::kThreads) {
    const bool exists = c < part.columns;
    copy_number(to->channel_scale + c, p.channel_scale + part.first_column, c, exists);
    copy_number(to->bias + c, p.bias + part.first_column, c, exists);
    if (used != 0) copy_number(to->table_id + c, p.table_id + part.first_column, c, exists);
  }
  const uint32_t first_token = static_cast<uint32_t>(part.first_row % p.tokens);
  for (int r = static_cast<int>(cuda::thread_x()); r < Shape::kRows; r += Shape::kThreads) {
    const int token = static_cast<int>((first_token + static_cast<uint32_t>(r)) % static_cast<uint32_t>(p.tokens));
    copy_number(to->token_scale + r, p.token_scale, token, r < part.rows);
    copy_number(to->out_token_scale + r, p.out_token_scale, token, r < part.rows);
  }
  if (used != 0) copy_tables<Shape>(to->tables, p.table, used, launch.table_width);
}

// sums += x * weight^T over the first Steps steps of a stage, this warp's quarter.
template <class Shape, int Steps>
VIMTRT_DEVICE void multiply(const int8_t* x, const int8_t* weight, Sums<Shape>& sums) {
  const unsigned lane = cuda::thread_x() % kWarpThreads, warp = cuda::thread_x() / kWarpThreads;
  // Which row and which half of a step's 32 values a lane addresses for ldmatrix, in the order of the mma's registers.
  const unsigned x_row = warp / Shape::kWarpsAcross * Shape::kWarpRows + lane % 16, x_byte = lane / 16 * kChunkBytes;
  const unsigned weight_row = warp % Shape::kWarpsAcross * Shape::kWarpColumns + lane / 16 * 8 + lane % 8,
                 weight_byte = lane / 8 % 2 * kChunkBytes;
#pragma unroll
  for (int step = 0; step < Steps; ++step) {
    uint32_t a[Shape::kDown][4];
    for (int i = 0; i < Shape::kDown; ++i)
      cuda::ldmatrix_x4(a[i], x + place<Shape::kDepth>(x_row + 16 * i, x_byte + step * kStepDepth));
    for (int j = 0; j < Shape::kAcross; j += 2) {
      uint32_t b[4];
      cuda::ldmatrix_x4(b, weight + place<Shape::kDepth>(weight_row + 8 * j, weight_byte + step * kStepDepth));
      const uint32_t left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
      for (int i = 0; i < Shape::kDown; ++i) cuda::mma_s8_m16n8k32(sums[i][j], a[i], left);
      for (int i = 0; i < Shape::kDown; ++i) cuda::mma_s8_m16n8k32(sums[i][j + 1], a[i], right);
    }
  }
}

// Four low bytes side by side.
VIMTRT_DEVICE uint32_t packed(uint32_t b0, uint32_t b1, uint32_t b2, uint32_t b3) {
  return (b0 & 255u) | (b1 & 255u) << 8 | (b2 & 255u) << 16 | b3 << 24;
}

// Run channels of one row, of which `exist` lie inside the output.
template <int Words>
VIMTRT_DEVICE void store_words(int8_t* y, const uint32_t (&word)[Words], int exist, int width) {
  if (width >= 4 * Words) {
    if (exist <= 0) return;
    if constexpr (Words == 4) {
      *reinterpret_cast<uint4*>(y) = uint4{word[0], word[1], word[2], word[3]};
    } else if constexpr (Words == 2) {
      *reinterpret_cast<uint2*>(y) = uint2{word[0], word[1]};
    } else {
      *reinterpret_cast<uint32_t*>(y) = word[0];
    }
  } else if (width >= 4) {
    for (int i = 0; i < Words; ++i) {
      if (4 * i < exist) reinterpret_cast<uint32_t*>(y)[i] = word[i];
    }
  } else {
    for (int e = 0; e < 4 * Words; ++e) {
      if (e < exist) y[e] = static_cast<int8_t>(word[e / 4] >> (e % 4 * 8));
    }
  }
}

// What the epilogue knows of a thread's channels of one group.
template <int Run>
struct Channels {
  float scale[Run], bias[Run];
  uint32_t table_at[Run];  // where the channel's table begins in `near`
  const int32_t* id = nullptr;
  const int8_t* near = nullptr;  // the identity, tables 0 .. kSharedTables - 1
  const int8_t* far = nullptr;   // all tables
  uint32_t used = 0;
  int exist = 0;
};

template <int Run>
VIMTRT_DEVICE void finish_run(int8_t* y, const float (&w)[Run], const Channels<Run>& channels, int width) {
  uint32_t q[Run], word[Run / 4];
  for (int e = 0; e < Run; ++e) q[e] = cuda::quantized_u8(w[e]);
  if ((channels.used & kFarTables) != 0) {
    for (int e = 0; e < Run; ++e) {
      const int64_t id = channels.id[e];
      if (id >= 0) q[e] = static_cast<uint8_t>(cuda::load(channels.far + id * kTableBytes + (q[e] & 255u))) ^ 128u;
      q[e] ^= 128u;
    }
  } else if (channels.used != 0) {
    for (int e = 0; e < Run; ++e) q[e] = static_cast<uint8_t>(channels.near[channels.table_at[e] | (q[e] & 255u)]);
  }
  for (int i = 0; i < Run / 4; ++i) {
    word[i] = packed(q[4 * i], q[4 * i + 1], q[4 * i + 2], q[4 * i + 3]) ^ (channels.used != 0 ? 0u : 0x80808080u);
  }
  store_words(y, word, channels.exist, width);
}

template <int Run>
VIMTRT_DEVICE void finish_run(float* y, const float (&w)[Run], const Channels<Run>& channels, int width) {
  static_assert(Run == 4, "one float4");
  if (width == 16) {
    if (channels.exist > 0) *reinterpret_cast<float4*>(y) = float4{w[0], w[1], w[2], w[3]};
  } else {
    for (int e = 0; e < Run; ++e) {
      if (e < channels.exist) y[e] = w[e];
    }
  }
}

// From the warp's sums to its part of y.
template <class Shape, class Output>
VIMTRT_DEVICE void finish(Output* y, const Launch& launch, const Part& part, const Constants<Shape>& constants,
                          uint32_t used, const Sums<Shape>& sums) {
  constexpr int kChannels = kRun<Shape, Output>;
  const int lane = static_cast<int>(cuda::thread_x() % kWarpThreads),
            warp = static_cast<int>(cuda::thread_x() / kWarpThreads);
#pragma unroll
  for (int group = 0; group < Shape::kWarpColumns / (4 * kChannels); ++group) {
    const int column = warp % Shape::kWarpsAcross * Shape::kWarpColumns + group * 4 * kChannels + lane % 4 * kChannels;
    Channels<kChannels> channels;
    for (int e = 0; e < kChannels; ++e) {
      channels.scale[e] = constants.channel_scale[column + e];
      channels.bias[e] = constants.bias[column + e];
      channels.table_at[e] = static_cast<uint32_t>(constants.table_id[column + e] + 1) * kTableBytes;
    }
    channels.id = constants.table_id + column;
    channels.near = constants.tables;
    channels.far = launch.p.table;
    channels.used = used;
    channels.exist = part.columns - column;
#pragma unroll
    for (int i = 0; i < 2 * Shape::kDown; ++i) {
      const int row = warp / Shape::kWarpsAcross * Shape::kWarpRows + 8 * i + lane / 4;
      if (row >= part.rows) continue;
      const float m = constants.token_scale[row], r = constants.out_token_scale[row];
      float w[kChannels];
      for (int e = 0; e < kChannels; ++e) {
        const int32_t sum = sums[i / 2][group * kChannels / 2 + e / 2][i % 2 * 2 + e % 2];
        w[e] = fmaf(static_cast<float>(sum) * m, channels.scale[e], channels.bias[e]) * r;
      }
      finish_run(y + (part.first_row + row) * launch.p.out_features + part.first_column + column, w, channels,
                 launch.y_width);
    }
  }
}

template <class Shape>
VIMTRT_DEVICE Operand operand(const int8_t* base, int64_t first_row, int rows, int64_t stride, int depth, int width) {
  const int8_t* first = base + first_row * stride;
  const unsigned at = cuda::thread_x() * kChunkBytes;
  return Operand{first, stride, rows, depth, width, first + at / Shape::kDepth * stride + at % Shape::kDepth};
}

// Parameters: a Launch or a Pair.
template <class Shape, class Output, class Parameters>
VIMTRT_KERNEL_OF(Shape::kThreads, blocks_that_fit(Shape::kBlocks))
void kscaled_linear_kernel(VIMTRT_GRID_CONSTANT const Parameters parameters) {
  static_assert(sizeof(Constants<Shape>) <= Shape::kStageBytes, "the constants fit a stage");
  const Launch& launch = launch_of_block(parameters);
  const KScaledLinearParams& p = launch.p;
  Part part;
  part.first_row = (launch.first_row_tile + cuda::block_x()) * Shape::kRows;
  part.first_column = (launch.first_column_tile + static_cast<int32_t>(cuda::block_y())) * Shape::kColumns;
  part.rows = static_cast<int>(p.rows - part.first_row < Shape::kRows ? p.rows - part.first_row : Shape::kRows);
  part.columns =
      p.out_features - part.first_column < Shape::kColumns ? p.out_features - part.first_column : Shape::kColumns;
  const Operand x = operand<Shape>(p.x, part.first_row, part.rows, p.x_stride, p.in_features, launch.x_width);
  const Operand weight =
      operand<Shape>(p.weight, part.first_column, part.columns, p.in_features, p.in_features, launch.weight_width);

  int8_t* const shared = cuda::dynamic_shared<int8_t>();
  const int stages = (p.in_features + Shape::kDepth - 1) / Shape::kDepth;
  Constants<Shape>* const constants =
      reinterpret_cast<Constants<Shape>*>(shared + stages % Shape::kStages * Shape::kStageBytes);
  uint32_t used = sizeof(Output) == 1 ? tables_of_lane(p, part) : 0;
  Sums<Shape> sums = {};
  for (int k = 1 - Shape::kStages; k < stages; ++k) {
    if (k >= 0) {
      cuda::wait_copies<Shape::kStages - 2>();
      cuda::sync_block();  // stage k is there, and no one reads stage k - 1 any more: its place is filled next
    }
    const int next = k + Shape::kStages - 1;
    if (next < stages) {
      int8_t* const stage = shared + next % Shape::kStages * Shape::kStageBytes;
      copy_matrix<Shape, Shape::kRows, 2>(stage, x, next * Shape::kDepth);
      copy_matrix<Shape, Shape::kColumns, kRun<Shape, Output>>(stage + Shape::kRows * Shape::kDepth, weight,
                                                               next * Shape::kDepth);
    } else if (next == stages) {
      used = cuda::or_of_warp(used);
      copy_constants(constants, launch, part, used);
    }
    cuda::commit_copies();
    if (k >= 0) {
      const int8_t* const stage = shared + k % Shape::kStages * Shape::kStageBytes;
      if (is_last_step(p.in_features, k * Shape::kDepth)) {
        multiply<Shape, 1>(stage, stage + Shape::kRows * Shape::kDepth, sums);
      } else {
        multiply<Shape, Shape::kDepth / kStepDepth>(stage, stage + Shape::kRows * Shape::kDepth, sums);
      }
    }
  }
  cuda::wait_copies<0>();
  cuda::sync_block();
  if constexpr (sizeof(Output) == 1) {
    finish<Shape>(p.y_int8, launch, part, *constants, used, sums);
  } else {
    finish<Shape>(p.y_float, launch, part, *constants, used, sums);
  }
}

// The launch

using cuda::address;
using cuda::width_of;

const Launch& first_of(const Launch& launch) { return launch; }
const Launch& first_of(const Pair& pair) { return pair.of[0]; }

void begin_at(Launch& launch, int64_t row_tile, int64_t column_tile) {
  launch.first_row_tile = row_tile;
  launch.first_column_tile = static_cast<int32_t>(column_tile);
}
void begin_at(Pair& pair, int64_t row_tile, int64_t column_tile) {
  for (Launch& launch : pair.of) begin_at(launch, row_tile, column_tile);
}

template <class Shape, class Output, class Parameters>
int launch_tiles(Parameters parameters, cuda::Stream stream) {
  const KScaledLinearParams& p = first_of(parameters).p;
  const int64_t row_tiles = cuda::ceil_div(p.rows, Shape::kRows);
  const int64_t column_tiles = cuda::ceil_div(p.out_features, Shape::kColumns);
  cuda::Grid grid;
  grid.z = sizeof(Parameters) / sizeof(Launch);
  return cuda::launch_in_parts(row_tiles, cuda::kMaxGridX, [&](int64_t first_row, int64_t rows) {
    return cuda::launch_in_parts(column_tiles, cuda::kMaxGridY, [&](int64_t first_column, int64_t columns) {
      begin_at(parameters, first_row, first_column);
      grid.x = static_cast<unsigned>(rows);
      grid.y = static_cast<unsigned>(columns);
      return cuda::launch(kscaled_linear_kernel<Shape, Output, Parameters>, grid, Shape::kThreads, Shape::kSharedBytes,
                          stream, parameters);
    });
  });
}

// How long the launch would take with these tiles. No result depends on it.
template <class Shape>
double estimated_time(const Choice<Shape>& choice, const KScaledLinearParams& p, int processors, int count) {
  const double blocks = std::ceil(static_cast<double>(p.rows) / Shape::kRows) *
                        std::ceil(static_cast<double>(p.out_features) / Shape::kColumns) * count;
  const double further = std::ceil(blocks / processors) - 1;  // of one processor
  const double depth = std::ceil(static_cast<double>(p.in_features) / kStepDepth) * kStepDepth;
  return choice.cost.first + choice.cost.first_of_depth * depth +
         further * (choice.cost.next + choice.cost.next_of_depth * depth);
}

template <class Output>
KScaledLinearTile best_tile(const KScaledLinearParams& p, int processors, int count) {
  const auto time_of = [&](const auto& choice) { return estimated_time(choice, p, processors, count); };
  const double times[] = {time_of(Choices<Output>::kSmall), time_of(Choices<Output>::kFlat),
                          time_of(Choices<Output>::kMedium), time_of(Choices<Output>::kLarge)};
  return static_cast<KScaledLinearTile>(std::min_element(std::begin(times), std::end(times)) - std::begin(times));
}

template <class Output>
int launch_tile(KScaledLinearTile tile, const Launch& launch, cuda::Stream stream) {
  using Of = Choices<Output>;
  switch (tile) {
    case KScaledLinearTile::kSmall:
      return launch_tiles<typename decltype(Of::kSmall)::Shape, Output>(launch, stream);
    case KScaledLinearTile::kFlat:
      return launch_tiles<typename decltype(Of::kFlat)::Shape, Output>(launch, stream);
    case KScaledLinearTile::kMedium:
      return launch_tiles<typename decltype(Of::kMedium)::Shape, Output>(launch, stream);
    default:
      return launch_tiles<typename decltype(Of::kLarge)::Shape, Output>(launch, stream);
  }
}

Launch launch_of(const KScaledLinearParams& params) {
  Launch launch;
  launch.p = params;
  launch.x_width =
      width_of(address(params.x) | static_cast<uint64_t>(params.x_stride) | static_cast<uint64_t>(params.in_features));
  launch.weight_width = width_of(address(params.weight) | static_cast<uint64_t>(params.in_features));
  launch.table_width = width_of(address(params.table));
  launch.y_width = params.y_float != nullptr
                       ? width_of(address(params.y_float) | static_cast<uint64_t>(params.out_features) * sizeof(float))
                       : width_of(address(params.y_int8) | static_cast<uint64_t>(params.out_features));
  return launch;
}

KScaledLinearTile best_tile(const KScaledLinearParams& params, int processors, int count) {
  return params.y_float != nullptr ? best_tile<float>(params, processors, count)
                                   : best_tile<int8_t>(params, processors, count);
}

}  // namespace

KScaledLinearTile kscaled_linear_tile(const KScaledLinearParams& params, int processors) {
  return best_tile(params, processors, 1);
}

int kscaled_linear_launch_tile(const KScaledLinearParams& params, KScaledLinearTile tile, cuda::Stream stream) {
  if (params.rows == 0) return 0;
  const Launch launch = launch_of(params);
  return params.y_float != nullptr ? launch_tile<float>(tile, launch, stream)
                                   : launch_tile<int8_t>(tile, launch, stream);
}

int kscaled_linear_launch(const KScaledLinearParams& params, cuda::Stream stream) {
  return kscaled_linear_launch_tile(params, kscaled_linear_tile(params, cuda::processors()), stream);
}

KScaledLinearTile kscaled_linear_pair_tile(const KScaledLinearParams& params, int processors) {
  return best_tile(params, processors, 2);
}

bool kscaled_linear_can_pair(const KScaledLinearParams& a, const KScaledLinearParams& b) {
  const auto alike = [](const void* one, const void* other) { return (one == nullptr) == (other == nullptr); };
  return a.rows == b.rows && a.tokens == b.tokens && a.in_features == b.in_features &&
         a.out_features == b.out_features && a.x_stride == b.x_stride && alike(a.table, b.table) &&
         a.y_float == nullptr && b.y_float == nullptr;
}

int kscaled_linear_launch_pair(const KScaledLinearParams& a, const KScaledLinearParams& b, cuda::Stream stream) {
  if (a.rows == 0) return 0;
  const auto one_by_one = [&] {
    const int status = kscaled_linear_launch(a, stream);
    return status != 0 ? status : kscaled_linear_launch(b, stream);
  };
  if (!kscaled_linear_can_pair(a, b)) return one_by_one();  // now that the pointers are known
  using Of = Choices<int8_t>;
  const Pair pair = {{launch_of(a), launch_of(b)}};
  switch (kscaled_linear_pair_tile(a, cuda::processors())) {
    case KScaledLinearTile::kSmall:
      return launch_tiles<decltype(Of::kSmall)::Shape, int8_t>(pair, stream);
    case KScaledLinearTile::kFlat:
      return launch_tiles<decltype(Of::kFlat)::Shape, int8_t>(pair, stream);
    default:
      return one_by_one();
  }
}

}  // namespace vimtrt
