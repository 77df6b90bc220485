// BidirectionalScan on a GPU (docs/numerics.md). README.md beside this file has the numbers.
//
// A recurrence is a chain over the tokens, so only images, channels, states and directions are parallel. A warp works
// on its own from the first token to the last: it copies its rows, scales its B and C, runs the recurrences and gates.
// Its lanes are the channels of a group and
//
//   narrow, for many images   both directions:       lane = 16 direction + channel, with all N states
//   wide, for few images      four parts of states:  lane = 8 part + channel, with the states n = part, part + 4, ..
//
// So each of the sum's four chains lies in one lane, and no h leaves the registers. Narrow needs the fewest
// instructions and the least traffic of shared memory for an update. Wide has four times the lanes for the same work.
// The launcher chooses.
//
// Grid:   x = groups of images times groups of channels, a group's channels lying side by side.
// Block:  narrow: up to eight images of a group of channels, a warp for each. Wide: one image, a warp for each
//         direction.
// Shared: narrow: 65 KiB (33 for N = 8), nearly all of it tables, which the block's images share, and 4.3 KiB (2.9) for
//         each image. Wide: 41 KiB (22), and 32 bytes for each token's y; beyond 48 KiB these lie in the workspace, as
//         those of narrow always do.
//
// A decay is the product of an entry of `high` and one of `low`, tables that the block makes first:
//
//   [vector][power][lane][up to four states]    so that a lane finds its states in the same banks whatever the power,
//                                               and no other lane's
//
// An update reads 8 bytes of them: that traffic bounds the kernel as much as its instructions do. Tables of fp32 leave
// room for one to three blocks on a processor. Images that share them are what fills it with warps all the same.
//
// Time. A tile is a few tokens, the same ones for both directions, T tiles in all. The forward direction takes tile k
// while the backward one takes tile T - 1 - k. A step is a token in the order of its direction:
//
//   token      0                        middle                        L
//   forward    | first: keeps its y    -> | second: finishes            ->
//   backward   <-     second: finishes    | <-       first: keeps its y |
//
// To finish is to add the y that the other direction kept, to gate, round and store. So nothing waits but once: behind
// k = T / 2 the directions need each other's y. Where T is odd both meet in that tile: forward keeps, then backward
// finishes. The last tile may have fewer tokens: the backward direction begins with the steps that are missing there,
// and sets its states back to 0 behind them.
//
//   k   copy tile k + kStages - 1 | scale B and C of tile k + 1 | recurrences of tile k | keep or finish its pairs
//
// A pair is a step and a channel: delta, g, y and the gate belong to it. In narrow a lane has all pairs of its channel,
// in wide those of the steps part, part + 4, ..: shuffles bring their delta and g to the other lanes of the channel,
// and the chains back.
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "plugins/bidirectional_scan/decay.h"
#include "plugins/bidirectional_scan/kernel.h"
#include "plugins/common/cuda_copies.h"
#include "plugins/common/cuda_launch.h"
#include "plugins/common/cuda_numerics.h"
#include "plugins/common/cuda_warp.h"

namespace vimtrt {
namespace {

using cuda::kWarpThreads;
using cuda::limited;

constexpr int kDirections = 2;
constexpr int kChains = 4;                     // of the sum over the states
constexpr size_t kMaxSharedBytes = 99 * 1024;  // that a block may have on every architecture
constexpr size_t kKeepingBytes = 48 * 1024;    // up to which a block keeps y in shared memory
constexpr int kInvalidValue = 1;               // cudaErrorInvalidValue

// From so many warps of narrow on it is taken: one for each scheduler of an H100. Four tokens take a scheduler some 810
// instructions in narrow, and 270 in each of wide's four warps for the same channels. So a processor with four
// schedulers is through with up to three times as many images and channels sooner in wide, and with four times in
// narrow. A constant, because the workspace depends on it, which is planned before the GPU is known.
constexpr int64_t kManyWarps = 4 * 132;

template <int States, int Lanes, int Channels, int Tile, int Stages, int Images>
struct Layout {
  static constexpr int kStates = States;
  static constexpr int kLanes = Lanes;        // of a channel and direction
  static constexpr int kChannels = Channels;  // of a block
  static constexpr int kTile = Tile;          // tokens
  static constexpr int kStages = Stages;      // tiles that are copied or in use
  static constexpr int kImages = Images;      // of a block, at most
  static constexpr int kWarpDirections = kWarpThreads / (Lanes * Channels);
  static constexpr int kImageWarps = kDirections / kWarpDirections;
  static constexpr int kWarps = Images * kImageWarps;  // of a block, at most
  static constexpr int kPerLane = States / Lanes;      // states of a lane
  static constexpr int kWidth = kPerLane < 4 ? kPerLane : 4;
  static constexpr int kVectors = kPerLane / kWidth;
  static constexpr int kPairs = Tile / Lanes;  // of a lane
  static_assert(Lanes == 1 || Lanes == kChains, "a lane has whole chains");
};

template <int States>
using Wide = Layout<States, 4, 8, 8, 4, 1>;
template <int States>
using Narrow = Layout<States, 1, 16, 4, 3, 8>;

// What the launcher adds to the operator's arguments; widths as in cuda_copies.h.
struct Launch {
  BidirectionalScanParams p;
  int64_t first_image = 0, end_image = 0;
  int32_t images_per_block = 1;
  int32_t groups = 0;  // of channels
  int32_t row_width = 1, bc_width = 1;
  float* workspace = nullptr;
};

enum Scalar { kDecay, kBTok, kCTok, kOutInv, kScalars };
enum Row { kU, kDelta, kGate, kRows };
enum Factor { kB, kC, kFactors };
enum ChannelScale { kInput, kY, kSkip, kGateScale, kChannelScales };

// A tile as it comes, of the warp's directions.
template <class Shape>
struct alignas(16) Stage {
  float scalars[Shape::kWarpDirections][kScalars][Shape::kTile];
  int8_t rows[Shape::kWarpDirections][kRows][Shape::kTile][Shape::kChannels];
  int8_t bc[Shape::kWarpDirections][Shape::kTile][kFactors * Shape::kStates];
};

// Bf and Cf of a tile, the states of a lane side by side.
template <class Shape>
struct alignas(16) Scaled {
  float factors[Shape::kWarpDirections][Shape::kTile][kFactors][Shape::kStates];
};

template <class Shape>
struct alignas(16) Warp {
  Stage<Shape> stages[Shape::kStages];
  Scaled<Shape> scaled[2];
};

// The tables for the lanes of a warp.
template <class Shape>
struct alignas(16) Tables {
  using Vector = float[Shape::kWidth];
  Vector high[Shape::kVectors][kDecayPowers][kWarpThreads];
  Vector low[Shape::kVectors][kDecayPowers][kWarpThreads];
};

template <class Shape>
struct alignas(16) Shared {
  Tables<Shape> tables[Shape::kImageWarps];
  float state_scales[kDirections][kFactors][Shape::kStates];
  float channel_scales[kDirections][Shape::kChannels][kChannelScales];
  Warp<Shape> warps[Shape::kWarps];
};

// Which part of the work is a lane's.
template <class Shape>
struct Place {
  int64_t image;
  int group, first_channel;  // of the block
  unsigned lane;
  unsigned channel;    // of the group
  unsigned part;       // which of the channel's lanes
  unsigned d, warp_d;  // direction, and which of the warp's it is
  int sign;            // tokens from step to step
};

// What a lane copies of every tile: a row, a scalar, and neighbouring words of B and C. Lanes behind the last unit of a
// kind copy none of it. Sources are those in the next tile; scalars and words are of the lane's own direction.
template <class Shape>
struct Copies {
  static constexpr int kRowUnits = Shape::kWarpDirections * kRows * Shape::kTile;
  static constexpr int kScalarUnits = Shape::kWarpDirections * kScalars * Shape::kTile;
  static constexpr int kBcBytes = Shape::kWarpDirections * Shape::kTile * kFactors * Shape::kStates;
  static constexpr int kWords = kBcBytes > 4 * kWarpThreads ? kBcBytes / (4 * kWarpThreads) : 1;  // of a lane
  static constexpr int kBcUnits = kBcBytes / (4 * kWords);
  static constexpr int kStepUnits = kBcUnits / (Shape::kWarpDirections * Shape::kTile);
  static_assert(kRowUnits <= kWarpThreads && kScalarUnits <= kWarpThreads, "one for each lane");
  static_assert(kWords * 4 <= Shape::kStates, "a lane has words of B or of C");
  const int8_t* row;
  const float* scalar;
  const int8_t* bc;
  int64_t row_advance, bc_advance;
};

// A lane as pairs: where y[d] of the direction that comes first waits, and where the sum goes.
template <class Shape>
struct Pairs {
  float* kept;  // of the channel in the next tile
  int8_t* y;    // of the lane's first pair in the next tile
  int y_step;   // from a pair to the lane's next one
  int left;     // steps from the lane's first pair in the next tile to the end, none where no channel is
};

template <class Shape>
struct Thread {
  Place<Shape> place;
  Pairs<Shape> pairs;
  const int8_t* tables;
  uint32_t entries;                             // where in the tables the lane's entries of power 0 are, in bytes
  const float* channel_scales;                  // in shared memory, which has more room than the registers
  const float (*state_scales)[Shape::kStates];  // of the direction, of B and of C
  int tiles, middle;                            // the tile in which the directions meet
  int firsts;                                   // tiles in which the direction is the first
  int row_bytes;                                // channels of the group that exist
  int missing;                                  // steps of the direction's first tile that have no token
};

template <class Shape>
struct Inputs {
  float u[Shape::kPairs], g[Shape::kPairs];
  uint32_t delta[Shape::kPairs];
};

template <int Count>
VIMTRT_DEVICE void read(float (&to)[Count], const void* from) {
  if constexpr (Count == 4) {
    const float4 v = *static_cast<const float4*>(from);
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
  } else {
    static_assert(Count == 2, "2 or 4");
    const float2 v = *static_cast<const float2*>(from);
    to[0] = v.x;
    to[1] = v.y;
  }
}

template <int Count>
VIMTRT_DEVICE void write(float* to, const float (&v)[Count]) {
  if constexpr (Count == 4) {
    *reinterpret_cast<float4*>(to) = float4{v[0], v[1], v[2], v[3]};
  } else {
    static_assert(Count == 2, "2 or 4");
    *reinterpret_cast<float2*>(to) = float2{v[0], v[1]};
  }
}

// float(sat8(rne(x))). rintf is one instruction, of the conversion unit, which is idle otherwise; two additions would
// make the chain from token to token shorter, but that bounds neither layout. It may give -0 for 0; that changes no
// more than signs of zeros, and an output of int8 has none.
VIMTRT_DEVICE float rounded_s8(float x) { return rintf(cuda::clamped_s8(x)); }

// The tables, and the scales of B and C

// exp2c of numerics.h with its coefficients as constants, for device code has no arrays of the host.
VIMTRT_DEVICE float exp2c_of_constants(float x) {
  x = fminf(fmaxf(x, -kExp2Limit), kExp2Limit);
  const float whole = floorf(x);
  const float f = x - whole;
  constexpr uint32_t c0 = kExp2CoefficientBits[0], c1 = kExp2CoefficientBits[1], c2 = kExp2CoefficientBits[2];
  constexpr uint32_t c3 = kExp2CoefficientBits[3], c4 = kExp2CoefficientBits[4], c5 = kExp2CoefficientBits[5];
  float p = fmaf(from_bits(c5), f, from_bits(c4));
  p = fmaf(p, f, from_bits(c3));
  p = fmaf(p, f, from_bits(c2));
  p = fmaf(p, f, from_bits(c1));
  p = fmaf(p, f, from_bits(c0));
  return from_bits(to_bits(p) + (static_cast<uint32_t>(static_cast<int32_t>(whole)) << 23));
}

template <class Shape>
VIMTRT_DEVICE void make_tables(Shared<Shape>& shared, const BidirectionalScanParams& p, const Place<Shape>& of) {
  constexpr int kHalves = 2, kUnits = Shape::kImageWarps * kHalves * Shape::kVectors * kWarpThreads;
  const int threads = static_cast<int>(cuda::threads_x());
#pragma unroll 1
  for (int unit = static_cast<int>(cuda::thread_x()); unit < kUnits; unit += threads) {
    const int lane = unit % kWarpThreads, vector = unit / kWarpThreads % Shape::kVectors;
    const int half = unit / (kWarpThreads * Shape::kVectors) % kHalves;
    const int table = unit / (kWarpThreads * Shape::kVectors * kHalves);
    const int channel = of.first_channel + lane % Shape::kChannels;
    const int d = Shape::kWarpDirections == 1 ? table : lane / Shape::kChannels;
    const int first = Shape::kLanes == 1 ? vector * Shape::kWidth : lane / Shape::kChannels;
    const int64_t at = (static_cast<int64_t>(d) * p.channels + channel) * Shape::kStates + first;
    float powers[Shape::kWidth][kDecayPowers];
#pragma unroll
    for (int j = 0; j < Shape::kWidth; ++j) {
      const float a_log2 = channel < p.channels ? cuda::load(p.a_log2 + at + j * Shape::kLanes) : 0.0f;
      decay_powers(exp2c_of_constants((half == 0 ? 16.0f : 1.0f) * a_log2), powers[j]);
    }
    Tables<Shape>& tables = shared.tables[table];
    auto* const to = half == 0 ? tables.high[vector] : tables.low[vector];
#pragma unroll
    for (int power = 0; power < kDecayPowers; ++power) {
      float row[Shape::kWidth];
#pragma unroll
      for (int j = 0; j < Shape::kWidth; ++j) row[j] = powers[j][power];
      write(to[power][lane], row);
    }
  }
}

template <class Shape>
VIMTRT_DEVICE void read_scales(Shared<Shape>& shared, const BidirectionalScanParams& p, int first_channel) {
  const int first = static_cast<int>(cuda::thread_x()), threads = static_cast<int>(cuda::threads_x());
  for (int i = first; i < kDirections * Shape::kStates; i += threads) {
    const int d = i / Shape::kStates, n = i % Shape::kStates;
    shared.state_scales[d][kB][n] = cuda::load(p.b_scale_state + i);
    shared.state_scales[d][kC][n] = cuda::load(p.c_scale_state + i);
  }
  for (int i = first; i < kDirections * Shape::kChannels; i += threads) {
    const int d = i / Shape::kChannels, channel = i % Shape::kChannels, e = first_channel + channel;
    if (e >= p.channels) continue;
    const int64_t at = static_cast<int64_t>(d) * p.channels + e;
    float* const scales = shared.channel_scales[d][channel];
    scales[kInput] = cuda::load(p.input_scale + at);
    scales[kY] = cuda::load(p.y_scale + at);
    scales[kSkip] = cuda::load(p.skip_scale + at);
    scales[kGateScale] = cuda::load(p.gate_scale + e);
  }
}

// Tiles: copies, and Bf and Cf

// The first `bytes` bytes of `Size` and zeros behind them. Whole: at once; otherwise in units of four.
template <int Size, bool Whole>
VIMTRT_DEVICE void copy_unit(int8_t* shared, const int8_t* global, int bytes, int width) {
  if constexpr (Whole) {
    cuda::copy_async<Size>(shared, global, bytes);
  } else {
#pragma unroll 1
    for (int byte = 0; byte < Size; byte += 4) {
      const int left = limited(bytes - byte, 4);
      if (width >= 4) {
        cuda::copy_async<4>(shared + byte, global + byte, left);
        continue;
      }
      *reinterpret_cast<uint32_t*>(shared + byte) = cuda::load_bytes(global + byte, left);
    }
  }
}

// The token of a step in the direction's first tile.
template <class Shape>
VIMTRT_DEVICE int first_token(int d, int step, int tiles) {
  return d == 0 ? step : tiles * Shape::kTile - 1 - step;
}

// The sources in the directions' first tiles. The units of a kind lie one direction after the other; lanes behind the
// last one copy none.
template <class Shape>
VIMTRT_DEVICE Copies<Shape> make_copies(const BidirectionalScanParams& p, const Thread<Shape>& self) {
  using All = Copies<Shape>;
  const Place<Shape>& place = self.place;
  const int first_d = place.d - place.warp_d, step = place.lane % Shape::kTile;
  const int64_t first_row = place.image * p.tokens;
  All copies;

  const int row = place.lane / Shape::kTile % kRows, row_d = first_d + place.lane / (kRows * Shape::kTile);
  const int8_t* rows = row == kU       ? (row_d == 0 ? p.u[0] : p.u[1])
                       : row == kDelta ? (row_d == 0 ? p.delta[0] : p.delta[1])
                                       : p.gate;
  const int64_t row_stride = row == kGate ? p.gate_stride : p.channels;
  copies.row = rows + (first_row + first_token<Shape>(row_d, step, self.tiles)) * row_stride + place.first_channel;
  copies.row_advance = (row_d == 0 ? Shape::kTile : -Shape::kTile) * row_stride;

  const int scalar = place.lane / Shape::kTile % kScalars;
  const float* scalars = scalar == kDecay  ? p.decay_tok
                         : scalar == kBTok ? p.b_scale_tok
                         : scalar == kCTok ? p.c_scale_tok
                                           : p.out_inv_scale_tok;
  const int64_t of_direction = scalar == kOutInv || place.d == 0 ? 0 : p.tokens;
  copies.scalar = scalars + of_direction + first_token<Shape>(place.d, step, self.tiles);

  const int bc_step = place.lane / All::kStepUnits % Shape::kTile, unit = place.lane % All::kStepUnits;
  copies.bc = (place.d == 0 ? p.bc[0] : p.bc[1]) +
              (first_row + first_token<Shape>(place.d, bc_step, self.tiles)) * p.bc_stride + unit * (4 * All::kWords);
  copies.bc_advance = place.sign * Shape::kTile * p.bc_stride;
  return copies;
}

// The lane's copies of a tile. What only the second at a token needs is left out of tiles without one. Whole: all steps
// have tokens; otherwise zeros take the place of those that have none.
template <bool Whole, class Shape>
VIMTRT_DEVICE void copy_units(Stage<Shape>& to, const Copies<Shape>& from, const Launch& launch,
                              const Thread<Shape>& self, int tile) {
  using All = Copies<Shape>;
  const unsigned lane = self.place.lane, first_d = self.place.d - self.place.warp_d;
  const int step = tile * Shape::kTile + static_cast<int>(lane % Shape::kTile);
  const bool finishes = tile >= self.middle;
  const auto exists = [&](int d, int at) {
    return Whole || (d == 0 ? at < launch.p.tokens : at >= self.tiles * Shape::kTile - launch.p.tokens);
  };
  if (lane < All::kRowUnits && (finishes || lane / Shape::kTile % kRows != kGate)) {
    const int bytes = Whole ? Shape::kChannels : self.row_bytes;
    copy_unit<Shape::kChannels, Whole>(&to.rows[0][0][0][0] + lane * Shape::kChannels, from.row,
                                       exists(first_d + lane / (kRows * Shape::kTile), step) ? bytes : 0,
                                       launch.row_width);
  }
  if (lane < All::kScalarUnits && (finishes || lane / Shape::kTile % kScalars != kOutInv)) {
    cuda::copy_async<4>(&to.scalars[0][0][0] + lane, from.scalar, exists(self.place.d, step) ? 4 : 0);
  }
  if (lane < All::kBcUnits) {
    const int bc_step = tile * Shape::kTile + static_cast<int>(lane / All::kStepUnits % Shape::kTile);
#pragma unroll
    for (int word = 0; word < All::kWords; ++word) {
      const int at = 4 * word;
      copy_unit<4, Whole>(&to.bc[0][0][0] + lane * (4 * All::kWords) + at, from.bc + at,
                          exists(self.place.d, bc_step) ? 4 : 0, launch.bc_width);
    }
  }
}

// Starts the lane's copies of the next tile, which is `tile`. Behind the last one there is nothing to copy, but one
// more group, so that as many groups as ever come after each tile.
template <class Shape>
VIMTRT_DEVICE void copy_tile(Copies<Shape>& copies, const Thread<Shape>& self, const Launch& launch, int tile,
                             Stage<Shape>& to) {
  if (tile < self.tiles) {
    if (tile > 0 && tile < self.tiles - 1 && launch.row_width >= Shape::kChannels && launch.bc_width >= 4) {
      copy_units<true>(to, copies, launch, self, tile);
    } else {
      copy_units<false>(to, copies, launch, self, tile);
    }
    copies.row += copies.row_advance;
    copies.scalar += self.place.sign * Shape::kTile;
    copies.bc += copies.bc_advance;
  }
  cuda::commit_copies();
}

// Bf and Cf of a tile, of the words that the lane copied. Behind the last tile, of what the stage holds; it is not
// used.
template <class Shape>
VIMTRT_DEVICE void scale(Scaled<Shape>& to, const Stage<Shape>& from, const Thread<Shape>& self) {
  using All = Copies<Shape>;
  constexpr unsigned kFactorUnits = All::kStepUnits / kFactors;
  const unsigned lane = self.place.lane, d = self.place.warp_d;
  const unsigned step = lane / All::kStepUnits % Shape::kTile, factor = lane / kFactorUnits % kFactors;
  if (lane >= All::kBcUnits) return;
  const float token_scale = from.scalars[d][factor == kB ? kBTok : kCTok][step];
  const float least = factor == kB ? kLeastDrive : -0.0f;  // x * y is fma(x, y, -0)
#pragma unroll
  for (int i = 0; i < All::kWords; ++i) {
    const unsigned word = lane % kFactorUnits * All::kWords + i;
    const uint32_t bytes = reinterpret_cast<const uint32_t*>(&from.bc[0][0][0])[lane * All::kWords + i];
    float v[4];
    read(v, &self.state_scales[factor][word * 4]);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      v[j] = fmaf(static_cast<float>(static_cast<int8_t>(bytes >> (8 * j))) * v[j], token_scale, least);
    float* const states = to.factors[d][step][factor];
    if constexpr (Shape::kLanes == 1) {
      write(states + word * 4, v);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) states[j * Shape::kPerLane + word] = v[j];
    }
  }
}

// A tile of the lane's recurrences

// What a pair has, in all lanes of its channel.
template <class Shape, class T>
VIMTRT_DEVICE T of_step(const T (&pairs)[Shape::kPairs], int step, const Place<Shape>& place) {
  if constexpr (Shape::kLanes == 1) {
    return pairs[step];
  } else {
    return cuda::shuffle(pairs[step / Shape::kLanes], step % Shape::kLanes * Shape::kChannels + place.channel);
  }
}

// A step of the lane's recurrences; returns its chains, added up as far as they lie in the lane. b_row and c_row are of
// the lane's states.
template <bool Int8State, class Shape>
VIMTRT_DEVICE float advance(float (&state)[Shape::kPerLane], const Thread<Shape>& self, const float* b_row,
                            const float* c_row, uint32_t delta, float g, float decay_tok) {
  constexpr int kLaneChains = kChains / Shape::kLanes;
  constexpr uint32_t kRowBytes = sizeof(Tables<Shape>::high[0][0]), kVectorBytes = sizeof(Tables<Shape>::high[0]);
  static_assert((kRowBytes & (kRowBytes - 1)) == 0, "so that rows and the lane's place in them have bits of their own");
  const int8_t* const high_row = self.tables + ((delta * (kRowBytes / 16) & 15 * kRowBytes) | self.entries);
  const int8_t* const low_row =
      self.tables + ((delta * kRowBytes & 15 * kRowBytes) | self.entries) + sizeof(Tables<Shape>::high);
  float chains[kLaneChains];
#pragma unroll
  for (int vector = 0; vector < Shape::kVectors; ++vector) {
    float high[Shape::kWidth], low[Shape::kWidth], b[Shape::kWidth], c[Shape::kWidth];
    read(high, high_row + vector * kVectorBytes);
    read(low, low_row + vector * kVectorBytes);
    read(b, b_row + vector * Shape::kWidth);
    read(c, c_row + vector * Shape::kWidth);
#pragma unroll
    for (int j = 0; j < Shape::kWidth; ++j) {
      const int i = vector * Shape::kWidth + j;
      float a = high[j] * low[j];
      if (Int8State) a = a * decay_tok;
      const float h = fmaf(a, state[i], g * b[j]);
      state[i] = Int8State ? rounded_s8(h) : h;
      float& chain = chains[i % kLaneChains];
      chain = i < kLaneChains ? h * c[j] : fmaf(h, c[j], chain);
    }
  }
  if constexpr (kLaneChains == 1) {
    return chains[0];
  } else {
    return (chains[0] + chains[2]) + (chains[1] + chains[3]);
  }
}

// The sums of the lane's pairs from what the lanes of a channel have of every step. Of four steps each sends half of
// what it has: first lanes 0 and 2, 1 and 3 add up two steps, then 0 and 1, 2 and 3 one.
template <class Shape>
VIMTRT_DEVICE void sum_lanes(float (&sums)[Shape::kPairs], const float (&of_steps)[Shape::kTile], unsigned part) {
  const bool upper = (part & 2) != 0, odd = (part & 1) != 0;
#pragma unroll
  for (int m = 0; m < Shape::kPairs; ++m) {
    const float* const of = of_steps + m * Shape::kLanes;
    if constexpr (Shape::kLanes == 1) {
      sums[m] = of[0];
    } else {
      const float even_step = (upper ? of[2] : of[0]) + cuda::shuffle_xor(upper ? of[0] : of[2], 2 * Shape::kChannels);
      const float odd_step = (upper ? of[3] : of[1]) + cuda::shuffle_xor(upper ? of[1] : of[3], 2 * Shape::kChannels);
      sums[m] = (odd ? odd_step : even_step) + cuda::shuffle_xor(odd ? even_step : odd_step, Shape::kChannels);
    }
  }
}

template <class Shape>
VIMTRT_DEVICE Inputs<Shape> make_inputs(const Thread<Shape>& self, const Stage<Shape>& stage) {
  const Place<Shape>& place = self.place;
  const auto& rows = stage.rows[place.warp_d];
  Inputs<Shape> in;
#pragma unroll
  for (int m = 0; m < Shape::kPairs; ++m) {
    const int step = place.part + m * Shape::kLanes;
    const int delta = rows[kDelta][step][place.channel] + 128;
    in.delta[m] = static_cast<uint32_t>(delta);
    in.u[m] = static_cast<float>(rows[kU][step][place.channel]);
    in.g[m] = fmaf(static_cast<float>(delta) * in.u[m], self.channel_scales[kInput], kLeastDrive);
  }
  return in;
}

// First: the direction's first tile, whose first steps may have no token.
template <bool Int8State, bool First, class Shape>
VIMTRT_DEVICE void scan_tile(float (&state)[Shape::kPerLane], Thread<Shape>& self, int tile, const Stage<Shape>& stage,
                             const Scaled<Shape>& scaled) {
  constexpr int kPairStep = Shape::kLanes * Shape::kChannels;  // of what is kept
  const Place<Shape>& place = self.place;
  Pairs<Shape>& pairs = self.pairs;
  const auto& scalars = stage.scalars[place.warp_d];
  const bool is_first = tile < self.firsts;
  float* const keeps = pairs.kept + place.part * Shape::kChannels;
  // What the other direction has kept, whose steps come in the opposite order.
  const float* const other = pairs.kept + (Shape::kTile - 1 - place.part) * Shape::kChannels;
  float kept[Shape::kPairs] = {};
  if (tile > self.middle) {  // early: it may be far away
#pragma unroll
    for (int m = 0; m < Shape::kPairs; ++m) kept[m] = other[-m * kPairStep];
  }

  const Inputs<Shape> in = make_inputs(self, stage);
  const float* const factors = &scaled.factors[place.warp_d][0][0][place.part * Shape::kPerLane];
  float decay_tok[Shape::kTile] = {}, of_steps[Shape::kTile], sums[Shape::kPairs], y[Shape::kPairs];
  if (Int8State) {
#pragma unroll
    for (int step = 0; step < Shape::kTile; ++step) decay_tok[step] = scalars[kDecay][step];
  }
#pragma unroll
  for (int step = 0; step < Shape::kTile; ++step) {
    const float* const row = factors + step * kFactors * Shape::kStates;
    of_steps[step] = advance<Int8State>(state, self, row, row + Shape::kStates, of_step<Shape>(in.delta, step, place),
                                        of_step<Shape>(in.g, step, place), decay_tok[step]);
    if (First && step < self.missing) {
#pragma unroll
      for (int i = 0; i < Shape::kPerLane; ++i) state[i] = 0.0f;
    }
  }
  sum_lanes<Shape>(sums, of_steps, place.part);
  float scales[kChannelScales];
  read(scales, self.channel_scales);

#pragma unroll
  for (int m = 0; m < Shape::kPairs; ++m) y[m] = fmaf(in.u[m], scales[kSkip], sums[m] * scales[kY]);
  if (is_first) {
#pragma unroll
    for (int m = 0; m < Shape::kPairs; ++m) keeps[m * kPairStep] = y[m];
  }
  if (tile == self.middle) {
    if constexpr (Shape::kImageWarps == 1) {
      cuda::sync_warp();
    } else {
      cuda::sync_block();
    }
    if (!is_first) {
#pragma unroll
      for (int m = 0; m < Shape::kPairs; ++m) kept[m] = other[-m * kPairStep];
    }
  }
  if (!is_first) {
#pragma unroll
    for (int m = 0; m < Shape::kPairs; ++m) {
      const int step = place.part + m * Shape::kLanes;
      const float gate = static_cast<float>(stage.rows[place.warp_d][kGate][step][place.channel]);
      const float o = (kept[m] + y[m]) * (gate * scales[kGateScale]);
      const int8_t q = static_cast<int8_t>(cuda::quantized_s8(o * scalars[kOutInv][step]));
      if (m * Shape::kLanes < pairs.left && !(First && step < self.missing)) pairs.y[m * pairs.y_step] = q;
    }
  }
  pairs.kept += place.sign * (Shape::kTile * Shape::kChannels);
  pairs.y += Shape::kPairs * pairs.y_step;
  pairs.left -= Shape::kTile;
}

// The kernel

template <class Shape>
VIMTRT_DEVICE Place<Shape> make_place(const Launch& launch) {
  const unsigned groups = static_cast<unsigned>(launch.groups);
  const unsigned warp = cuda::thread_x() / kWarpThreads;
  Place<Shape> place;
  place.lane = cuda::thread_x() % kWarpThreads;
  place.channel = place.lane % Shape::kChannels;
  place.part = place.lane / Shape::kChannels % Shape::kLanes;
  place.warp_d = place.lane / (Shape::kChannels * Shape::kLanes);
  place.d = place.warp_d + warp % Shape::kImageWarps;
  place.sign = place.d == 0 ? 1 : -1;
  place.image = launch.first_image + static_cast<int64_t>(cuda::block_x() / groups) * launch.images_per_block +
                warp / Shape::kImageWarps;
  place.group = static_cast<int>(cuda::block_x() % groups);
  place.first_channel = place.group * Shape::kChannels;
  return place;
}

template <class Shape>
VIMTRT_DEVICE Pairs<Shape> make_pairs(const Launch& launch, float* shared, const Thread<Shape>& self) {
  const BidirectionalScanParams& p = launch.p;
  const Place<Shape>& place = self.place;
  const int e = place.first_channel + place.channel;
  Pairs<Shape> pairs;
  pairs.left = e < p.channels ? (place.d == 0 ? p.tokens : self.tiles * Shape::kTile) - place.part : 0;
  const int64_t token = first_token<Shape>(place.d, place.part, self.tiles);
  pairs.y = p.y + (place.image * p.tokens + token) * p.channels + e;
  pairs.y_step = place.sign * Shape::kLanes * p.channels;
  constexpr int kTileFloats = Shape::kTile * Shape::kChannels;
  float* const kept = shared != nullptr
                          ? shared
                          : launch.workspace + (place.image * launch.groups + place.group) * self.tiles * kTileFloats;
  pairs.kept = kept + (place.d == 0 ? 0 : static_cast<int64_t>(self.tiles - 1) * kTileFloats) + place.channel;
  return pairs;
}

// Two blocks of narrow fit a processor with 228 KiB of shared memory; that leaves 128 registers.
template <class Shape, bool Int8State>
VIMTRT_KERNEL_OF(Shape::kWarps* kWarpThreads, 2)
void bidirectional_scan_kernel(Launch launch) {
  Shared<Shape>* const shared = cuda::dynamic_shared<Shared<Shape>>();
  Thread<Shape> self;
  self.place = make_place<Shape>(launch);
  make_tables(*shared, launch.p, self.place);
  read_scales(*shared, launch.p, self.place.first_channel);
  cuda::sync_block();
  if (self.place.image >= launch.end_image) return;  // in narrow, whose warps do not meet again

  const Place<Shape>& place = self.place;
  const uint32_t table = cuda::thread_x() / kWarpThreads % Shape::kImageWarps;
  self.tables = reinterpret_cast<const int8_t*>(shared);
  self.entries = table * sizeof(Tables<Shape>) + place.lane * sizeof(typename Tables<Shape>::Vector);
  self.state_scales = shared->state_scales[place.d];
  self.channel_scales = shared->channel_scales[place.d][place.channel];
  self.tiles = (launch.p.tokens - 1) / Shape::kTile + 1;
  self.middle = self.tiles / 2;
  self.firsts = (self.tiles + (place.d == 0 ? 1 : 0)) / 2;
  self.row_bytes = limited(launch.p.channels - place.first_channel, Shape::kChannels);
  self.missing = place.d == 0 ? 0 : self.tiles * Shape::kTile - launch.p.tokens;
  const bool in_shared = Shape::kImages == 1 && launch.workspace == nullptr;
  self.pairs = make_pairs<Shape>(launch, in_shared ? reinterpret_cast<float*>(shared + 1) : nullptr, self);

  Warp<Shape>& warp = shared->warps[cuda::warp()];
  float state[Shape::kPerLane] = {};
  Copies<Shape> copies = make_copies<Shape>(launch.p, self);
#pragma unroll 1
  for (int tile = 0; tile < Shape::kStages - 1; ++tile) copy_tile(copies, self, launch, tile, warp.stages[tile]);
  cuda::wait_copies<Shape::kStages - 2>();
  cuda::sync_warp();
  scale(warp.scaled[0], warp.stages[0], self);
  int stage = 0;
  const auto run_tile = [&](int tile, auto first) {
    const int next = stage + 1 < Shape::kStages ? stage + 1 : 0, previous = stage > 0 ? stage - 1 : Shape::kStages - 1;
    cuda::wait_copies<Shape::kStages - 3>();
    cuda::sync_warp();  // the next tile is there, and no one reads the previous one any more
    copy_tile(copies, self, launch, tile + Shape::kStages - 1, warp.stages[previous]);
    scale(warp.scaled[(tile + 1) % 2], warp.stages[next], self);
    scan_tile<Int8State, decltype(first)::value>(state, self, tile, warp.stages[stage], warp.scaled[tile % 2]);
    stage = next;
  };
  run_tile(0, std::true_type());
#pragma unroll 1
  for (int tile = 1; tile < self.tiles; ++tile) run_tile(tile, std::false_type());
}

// The launch

using cuda::address;
using cuda::ceil_div;
using cuda::width_of;

int64_t groups_of(const BidirectionalScanParams& p, int channels) { return ceil_div(p.channels, channels); }

template <int States>
bool is_narrow(const BidirectionalScanParams& p) {
  return p.batch * groups_of(p, Narrow<States>::kChannels) >= kManyWarps;
}

// Of a block of so many images, without the y that they keep.
template <class Shape>
size_t shared_bytes(int images) {
  return sizeof(Shared<Shape>) - sizeof(Warp<Shape>) * static_cast<size_t>(Shape::kWarps - images * Shape::kImageWarps);
}

// The y that a block of wide keeps.
template <class Shape>
size_t kept_bytes(const BidirectionalScanParams& p) {
  return sizeof(float) * Shape::kChannels * Shape::kTile * static_cast<size_t>(ceil_div(p.tokens, Shape::kTile));
}

template <class Shape>
bool needs_workspace(const BidirectionalScanParams& p) {
  // Of narrow no more than a few tokens would fit.
  return Shape::kImages > 1 || shared_bytes<Shape>(1) + kept_bytes<Shape>(p) > kKeepingBytes;
}

// In whole groups of channels and whole tiles of either layout, so that narrow needs no less than wide.
template <class Shape>
size_t workspace_bytes(const BidirectionalScanParams& p) {
  constexpr int kMostChannels = 16, kMostTile = 8;
  static_assert(kMostChannels % Shape::kChannels == 0 && kMostTile % Shape::kTile == 0, "the most of either layout");
  if (!needs_workspace<Shape>(p)) return 0;
  return sizeof(float) * static_cast<size_t>(p.batch * (ceil_div(p.tokens, kMostTile) * kMostTile) *
                                             (ceil_div(p.channels, kMostChannels) * kMostChannels));
}

// With which the processor with the most blocks has the fewest images. But at least half of what a block may have, for
// tables leave room for one to three blocks; or as many as there are for each processor.
template <class Shape>
int images_per_block(int64_t batch, int64_t groups) {
  const int64_t processors = cuda::processors();
  int64_t least = INT64_MAX;
  int best = 1;
  const int64_t fewest = std::min<int64_t>((Shape::kImages + 1) / 2, ceil_div(batch * groups, processors));
  for (int images = static_cast<int>(fewest); images <= Shape::kImages; ++images) {
    const int64_t load = images * ceil_div(ceil_div(batch, images) * groups, processors);
    if (load > least) continue;
    least = load;
    best = images;
  }
  return best;
}

template <class Shape, bool Int8State>
int launch_kernel(const BidirectionalScanParams& p, cuda::Stream stream, void* workspace) {
  static_assert(sizeof(Shared<Shape>) <= kMaxSharedBytes, "of every architecture");
  const bool with_workspace = needs_workspace<Shape>(p);
  if (with_workspace && workspace == nullptr) return kInvalidValue;
  Launch launch;
  launch.p = p;
  launch.groups = static_cast<int32_t>(groups_of(p, Shape::kChannels));
  launch.workspace = with_workspace ? static_cast<float*>(workspace) : nullptr;
  uint64_t rows = address(p.gate) | static_cast<uint64_t>(p.gate_stride) | static_cast<uint64_t>(p.channels),
           bc = static_cast<uint64_t>(p.bc_stride);
  for (int d = 0; d < kDirections; ++d) {
    rows |= address(p.u[d]) | address(p.delta[d]);
    bc |= address(p.bc[d]);
  }
  launch.row_width = width_of(rows);
  launch.bc_width = width_of(bc);

  const int images = images_per_block<Shape>(p.batch, launch.groups);
  launch.images_per_block = images;
  const unsigned threads = static_cast<unsigned>(images * Shape::kImageWarps * kWarpThreads);
  const size_t shared = shared_bytes<Shape>(images) + (with_workspace ? 0 : kept_bytes<Shape>(p));
  cuda::Grid grid;
  return cuda::launch_in_parts(p.batch, cuda::kMaxGridX / launch.groups, [&](int64_t first_image, int64_t count) {
    launch.first_image = first_image;
    launch.end_image = first_image + count;
    grid.x = static_cast<unsigned>(ceil_div(count, images) * launch.groups);
    return cuda::launch(bidirectional_scan_kernel<Shape, Int8State>, grid, threads, shared, stream, launch);
  });
}

template <class Shape>
int launch_layout(const BidirectionalScanParams& p, cuda::Stream stream, void* workspace) {
  return p.state == ScanState::kInt8 ? launch_kernel<Shape, true>(p, stream, workspace)
                                     : launch_kernel<Shape, false>(p, stream, workspace);
}

}  // namespace

size_t bidirectional_scan_workspace_bytes(const BidirectionalScanParams& p) {
  if (p.states == 16) return is_narrow<16>(p) ? workspace_bytes<Narrow<16>>(p) : workspace_bytes<Wide<16>>(p);
  return is_narrow<8>(p) ? workspace_bytes<Narrow<8>>(p) : workspace_bytes<Wide<8>>(p);
}

int bidirectional_scan_launch(const BidirectionalScanParams& p, cuda::Stream stream, void* workspace) {
  if (p.batch == 0) return 0;
  if (p.states == 16)
    return is_narrow<16>(p) ? launch_layout<Narrow<16>>(p, stream, workspace)
                            : launch_layout<Wide<16>>(p, stream, workspace);
  return is_narrow<8>(p) ? launch_layout<Narrow<8>>(p, stream, workspace)
                         : launch_layout<Wide<8>>(p, stream, workspace);
}

}  // namespace vimtrt
