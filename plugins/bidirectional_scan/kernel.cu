// BidirectionalScan on a GPU (docs/numerics.md). README.md beside this file has the numbers.
//
// Grid:   x = images times groups of channels, a group's channels lying side by side.
// Block:  a warpgroup has two warps for the forward direction of the group and two for the backward one. "Wide" has two
//         warpgroups, 256 threads; "narrow" has one, 128 threads.
// Shared: 15 to 40 KiB, and 4 bytes per token and channel of the group for the merge; where the two are more than
//         48 KiB, the latter lie in the workspace.
//
// A recurrence is a chain over the tokens, so only channels, states and directions are parallel. A channel's N states
// lie in kLanes lanes, N / kLanes states in each, and a warp holds 32 / kLanes channels. It takes kLanes tokens at a
// time, a part, so that its lanes are also all pairs of a token and a channel:
//
//   N = 16, kLanes = 16 (wide)                                 N = 16, kLanes = 4 (narrow)
//   states  lane = 16 channel + state                          lane = 4 channel + state / 4
//           ch 0: n0 n1 .. n15 | ch 1: n0 n1 .. n15            ch 0: n0-3 n4-7 n8-11 n12-15 | ch 1: .. | .. ch 7
//   pairs   lane = 8 (token / 4) + 4 channel + token % 4       lane = 4 channel + token
//           t0-3 of ch 0 | t0-3 of ch 1 | t4-7 of ch 0 | ..    t0-3 of ch 0 | t0-3 of ch 1 | .. | t0-3 of ch 7
//
// As a pair a lane makes delta and g; as (channel, states) it makes the coefficients of h = fma(a, h, b), runs the
// recurrence and leaves every h in shared memory; as a pair again it adds up its y: all chains of the contract in one
// thread and in order, whatever lanes held the states.
//
// Wide has N / 4 times the lanes of narrow for the same work, and its two warpgroups play ping-pong: while one runs
// the recurrence of a tile, a chain of instructions that wait for each other, the other fills the gaps with what
// comes before and after the recurrence of the tiles beside it. That is for few images, where a processor has no
// other block to fill the gaps; for many images narrow needs fewer instructions and less shared memory traffic for
// each update. The launcher chooses.
//
//   wide         phase k - 1                  phase k                          phase k + 1
//   group k % 2  y of tile k - 2, merge       recurrence of tile k, its Cf     y of tile k, merge
//                pairs and a, b of tile k     Bf of k + 2, copies of k + 3     pairs and a, b of tile k + 2
//   the other    recurrence of tile k - 1 ..  y of tile k - 1, merge           recurrence of tile k + 1 ..
//                                             pairs and a, b of tile k + 1
//
//   narrow       for every tile: copies of the next one, Bf, Cf;
//                for each of its parts: pairs, a and b, recurrence, y, merge
//
// Time. Both directions count steps: step s is token s forward, L - 1 - s backward. A tile is kTile steps of either:
//
//   step       0        kTile        2 kTile                                   L
//   forward    | tile 0 |   tile 1   | .. ------->  |  <----------- ..         |       first at a token: keeps its y
//   backward   |        ..  <----------  |  -------> ..     | tile 1  | tile 0 |       second: adds the kept y, gates,
//   token      0                           (L-1)/2                          L - 1      rounds, stores
//
// Before the middle every y is kept, behind it every token is finished, by both directions, so nothing waits. In the
// tile of the middle they meet: there one more barrier stands between the two, and of a pair that both directions reach
// together the forward direction keeps its y.
//
// Shared memory of a direction (float4 wherever the recurrence reads, a group being 4 steps):
//
//   Stage   scalars [4][kTile]             decay, b_tok, c_tok, out_inv
//           rows    [3][kTile][kChannels]  u, delta, gate
//           bc      [kTile][2 N]           as they come
//   b       [group][state][step % 4]       Bf: a lane reads a state's four steps at once
//   c       [step][N + 4]                  Cf: a lane reads a step's four states at once
//   states  [warp][32]                     from warpgroup to warpgroup
// and of a warp:
//   delta, g [32], lane as pair            so that a channel's four steps lie side by side
//   h        [32][N + 4], row = lane as pair
#include <cmath>
#include <cstdint>

#include "plugins/bidirectional_scan/kernel.h"
#include "plugins/common/cuda_copies.h"
#include "plugins/common/cuda_launch.h"
#include "plugins/common/cuda_numerics.h"
#include "plugins/common/cuda_warp.h"

namespace vimtrt {
namespace {

using cuda::kWarpThreads;
using cuda::kWhole;
using cuda::limited;

constexpr int kDirections = 2;
constexpr int kDirectionWarps = 2;                                 // of a warpgroup
constexpr int kDirectionThreads = kDirectionWarps * kWarpThreads;  // of a warpgroup
constexpr int kWarpgroupWarps = kDirections * kDirectionWarps;
constexpr int kGroup = 4;  // steps whose operands are read at once
constexpr size_t kMaxSharedBytes = 48 * 1024;
constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

// From this many blocks on narrow is faster: four blocks of wide do the work of one of narrow, a processor holds two at
// once, and as soon as some processor has more than four, those take longer. One more than an H100 has processors;
// README.md has the times. A constant, because the workspace depends on it, which is planned before the GPU is known.
constexpr int64_t kManyBlocks = 133;

template <int States, int Lanes, int Tile, int Warpgroups>
struct Layout {
  static constexpr int kStates = States, kLanes = Lanes, kTile = Tile, kWarpgroups = Warpgroups;
  static constexpr int kThreads = Warpgroups * kWarpgroupWarps * kWarpThreads;
  static constexpr int kPerLane = States / Lanes;                    // states of a lane
  static constexpr int kWarpChannels = kWarpThreads / Lanes;         // channels of a warp
  static constexpr int kChannels = kDirectionWarps * kWarpChannels;  // of a block
  static constexpr int kPart = Lanes;                                // steps that a warp takes at a time
  static constexpr int kPitch = States + 4;       // floats from row to row: eight rows' float4 lie in different banks
  static constexpr int kStages = 2 * Warpgroups;  // tiles that are copied or in use
  static_assert(kPart % kGroup == 0 && Tile % kPart == 0, "parts are whole groups, tiles whole parts");
};

template <int States>
using Wide = Layout<States, States, States, 2>;
template <int States>
using Narrow = Layout<States, kGroup, 16, 1>;

// What the launcher adds to the operator's arguments; widths as in cuda_copies.h.
struct Launch {
  BidirectionalScanParams p;
  int64_t first_image = 0;
  int32_t groups = 0;  // of channels
  int32_t row_width = 1, bc_width = 1;
  float* workspace = nullptr;
};

enum Scalar { kDecay, kBTok, kCTok, kOutInv, kScalars };
enum Row { kU, kDelta, kGate, kRows };
enum Which { kB, kC };

template <class Shape>
struct alignas(16) Stage {
  float scalars[kScalars][Shape::kTile];
  int8_t rows[kRows][Shape::kTile][Shape::kChannels];
  int8_t bc[Shape::kTile][2 * Shape::kStates];
};

// Bf and Cf of a tile. Four words after every eight states keep narrow's lanes, four states apart, in different banks.
template <class Shape>
struct alignas(16) Scaled {
  static constexpr int kGroupPitch = kGroup * Shape::kStates + 8;
  float b[Shape::kTile / kGroup][kGroupPitch];
  float c[Shape::kTile][Shape::kPitch];
};

template <class Shape>
struct alignas(16) Direction {
  Stage<Shape> stages[Shape::kStages];
  Scaled<Shape> scaled[Shape::kWarpgroups];
  float state_scales[2][Shape::kStates];  // of B, of C
  float states[kDirectionWarps][kWarpThreads];
};

template <class Shape>
struct alignas(16) Warp {
  float delta[kWarpThreads];
  float g[kWarpThreads];
  float h[kWarpThreads][Shape::kPitch];
};

template <class Shape>
struct alignas(16) Shared {
  Direction<Shape> directions[kDirections];
  Warp<Shape> warps[Shape::kWarpgroups * kWarpgroupWarps];
};

// Which part of the work is a thread's.
struct Place {
  int64_t image = 0;
  int first_channel = 0;
  int warpgroup = 0;
  int d = 0;       // direction
  int warp = 0;    // of the warpgroup's direction
  int thread = 0;  // of the warpgroup's direction
  int lane = 0;
};

// What a thread copies of every tile: a row, a word of B and C in kBcPasses steps, and a scalar. Sources are those in
// the warpgroup's next tile.
template <class Shape>
struct Copies {
  static constexpr int kRowUnits = kRows * Shape::kTile, kScalarUnits = kScalars * Shape::kTile;
  static constexpr int kBcWords = 2 * Shape::kStates / 4, kBcUnits = Shape::kTile * kBcWords;
  static constexpr int kBcPasses = (kBcUnits + kDirectionThreads - 1) / kDirectionThreads;
  static constexpr int kBcPassSteps = kDirectionThreads / kBcWords;
  static_assert(kRowUnits <= kDirectionThreads && kScalarUnits <= kDirectionThreads, "one for each thread");
  const int8_t* row;
  const int8_t* bc;
  const float* scalar;
  int64_t row_advance, bc_advance, bc_pass;
  int scalar_advance;
};

// A lane's token and channel.
struct Pair {
  int step = 0;     // within the part
  int channel = 0;  // within the group
  bool exists = false;
  float input_scale = 0, y_scale = 0, skip_scale = 0, gate_scale = 0;
};

// Where y[d] of the direction that comes first waits, and where the sum goes.
struct Merge {
  float* kept;  // of the image's first token and the pair's channel
  int8_t* y;
  int kept_step, y_step;  // elements from token to token
};

// What a lane, as (channel, states), keeps of its states: A2, and a bound of |delta * A2| over the whole warp.
template <class Shape>
struct Decay {
  float a_log2[Shape::kPerLane];
  float reach;
};

template <class Shape>
struct Thread {
  Place place;
  Pair pair;
  Merge merge;
  Decay<Shape> decay;
  Direction<Shape>* direction;
  Warp<Shape>* warp;
  int tokens, tiles, middle;  // the tile in which the directions meet
  int row_bytes;              // channels of the group that exist
};

template <class Shape>
VIMTRT_DEVICE Stage<Shape>& stage_of(const Thread<Shape>& self, int tile) {
  return self.direction->stages[static_cast<unsigned>(tile) % Shape::kStages];
}

template <class Shape>
VIMTRT_DEVICE Scaled<Shape>& scaled_of(const Thread<Shape>& self, int tile) {
  return self.direction->scaled[static_cast<unsigned>(tile) % Shape::kWarpgroups];
}

// What a pair needs to the end.
struct Operands {
  float u = 0, gate = 0, out_inv = 0;
};

// h = fma(a, state, b) of some groups.
template <class Shape, int Groups>
struct Coefficients {
  float a[Groups][kGroup][Shape::kPerLane], b[Groups][kGroup][Shape::kPerLane];
};

VIMTRT_DEVICE void read4(float (&to)[4], const float* from) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  to[0] = v.x;
  to[1] = v.y;
  to[2] = v.z;
  to[3] = v.w;
}

template <int Count>
VIMTRT_DEVICE void write(float* to, const float (&v)[Count]) {
  if constexpr (Count == 4) {
    *reinterpret_cast<float4*>(to) = float4{v[0], v[1], v[2], v[3]};
  } else if constexpr (Count == 2) {
    *reinterpret_cast<float2*>(to) = float2{v[0], v[1]};
  } else {
    static_assert(Count == 1, "1, 2 or 4");
    to[0] = v[0];
  }
}

// float(sat8(rne(x))). One instruction of the conversion unit, which is slow and otherwise idle half of the time, or
// two additions, which make the chain shorter. rintf may give -0 for 0; that changes no more than signs of zeros, and
// an output of int8 has none.
template <bool WithAdditions>
VIMTRT_DEVICE float rounded_s8(float x) {
  return WithAdditions ? (cuda::clamped_s8(x) + kWhole) - kWhole : rintf(cuda::clamped_s8(x));
}

// exp2c of numerics.h with the exponent taken from the low bits of a sum: those of kWhole itself leave in the shift.
template <bool Clamps>
VIMTRT_DEVICE float exp2c_without_conversion(float x) {
  if (Clamps) x = fminf(fmaxf(x, -kExp2Limit), kExp2Limit);
  const float whole = floorf(x);
  const float f = x - whole;
  constexpr uint32_t c0 = kExp2CoefficientBits[0], c1 = kExp2CoefficientBits[1], c2 = kExp2CoefficientBits[2];
  constexpr uint32_t c3 = kExp2CoefficientBits[3], c4 = kExp2CoefficientBits[4], c5 = kExp2CoefficientBits[5];
  float p = fmaf(from_bits(c5), f, from_bits(c4));
  p = fmaf(p, f, from_bits(c3));
  p = fmaf(p, f, from_bits(c2));
  p = fmaf(p, f, from_bits(c1));
  p = fmaf(p, f, from_bits(c0));
  return from_bits(to_bits(p) + (to_bits(whole + kWhole) << 23));
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

// The sources of tile `first_tile`; the warpgroup goes on to the kWarpgroups-th tile behind it, and so on.
template <class Shape>
VIMTRT_DEVICE Copies<Shape> make_copies(const BidirectionalScanParams& p, const Place& place, int first_tile) {
  using All = Copies<Shape>;
  All copies;
  const int d = place.d, sign = d == 0 ? 1 : -1, start = d == 0 ? 0 : p.tokens - 1;  // step s is token start + sign * s
  const int first_step = first_tile * Shape::kTile, advance = sign * Shape::kWarpgroups * Shape::kTile;
  const int64_t image_row = place.image * p.tokens + start;

  const int row = place.thread / Shape::kTile, scalar = row, step = first_step + place.thread % Shape::kTile;
  const int8_t* rows = row == kU       ? (d == 0 ? p.u[0] : p.u[1])
                       : row == kDelta ? (d == 0 ? p.delta[0] : p.delta[1])
                                       : p.gate;
  const int64_t row_stride = row == kGate ? p.gate_stride : p.channels;
  copies.row = rows + (image_row + sign * step) * row_stride + place.first_channel;
  copies.row_advance = advance * row_stride;

  const float* scalars = scalar == kDecay  ? p.decay_tok
                         : scalar == kBTok ? p.b_scale_tok
                         : scalar == kCTok ? p.c_scale_tok
                                           : p.out_inv_scale_tok;
  copies.scalar = scalars + (scalar == kOutInv ? 0 : static_cast<int64_t>(d) * p.tokens) + start + sign * step;
  copies.scalar_advance = advance;

  const int bc_step = first_step + place.thread / All::kBcWords, bc_word = place.thread % All::kBcWords;
  copies.bc = (d == 0 ? p.bc[0] : p.bc[1]) + (image_row + sign * bc_step) * p.bc_stride + bc_word * 4;
  copies.bc_pass = sign * All::kBcPassSteps * p.bc_stride;
  copies.bc_advance = advance * p.bc_stride;
  return copies;
}

// The thread's copies of a tile of which `steps` steps exist; zeros for the others. What only the second at a token
// needs is left out of tiles without one.
template <bool Whole, class Shape>
VIMTRT_DEVICE void copy_units(Stage<Shape>& to, const Copies<Shape>& from, const Launch& launch, int thread, int steps,
                              int row_bytes, bool finishes) {
  using All = Copies<Shape>;
  const bool exists = thread % Shape::kTile < steps;
  if (thread < (finishes ? kRows : kGate) * Shape::kTile) {
    copy_unit<Shape::kChannels, Whole>(&to.rows[0][0][0] + thread * Shape::kChannels, from.row, exists ? row_bytes : 0,
                                       launch.row_width);
  }
  if (thread < (finishes ? kScalars : kOutInv) * Shape::kTile) {
    cuda::copy_async<4>(&to.scalars[0][0] + thread, from.scalar, exists ? 4 : 0);
  }
#pragma unroll
  for (int j = 0; j < All::kBcPasses; ++j) {
    const int unit = thread + j * kDirectionThreads;
    if (All::kBcUnits % kDirectionThreads != 0 && unit >= All::kBcUnits) continue;
    copy_unit<4, Whole>(&to.bc[0][0] + unit * 4, from.bc + j * from.bc_pass, unit / All::kBcWords < steps ? 4 : 0,
                        launch.bc_width);
  }
}

// Starts the thread's copies of the warpgroup's next tile, which is `tile`.
template <class Shape>
VIMTRT_DEVICE void copy_tile(Copies<Shape>& copies, const Thread<Shape>& self, const Launch& launch, int tile) {
  Stage<Shape>& to = stage_of(self, tile);
  const int steps = self.tokens - tile * Shape::kTile, thread = self.place.thread;
  const bool finishes = tile >= self.middle;
  if (launch.row_width >= Shape::kChannels && launch.bc_width >= 4) {
    copy_units<true>(to, copies, launch, thread, steps, self.row_bytes, finishes);
  } else {
    copy_units<false>(to, copies, launch, thread, steps, self.row_bytes, finishes);
  }
  copies.row += copies.row_advance;
  copies.scalar += copies.scalar_advance;
  copies.bc += copies.bc_advance;
  cuda::commit_copies();
}

// Bf or Cf of a tile, shared by the channels of the block: four states of a step at a time.
template <Which Factor, class Shape>
VIMTRT_DEVICE void scale(const Thread<Shape>& self, int tile) {
  constexpr int kWords = Shape::kStates / 4, kItems = Shape::kTile * kWords;
  const Stage<Shape>& from = stage_of(self, tile);
  Scaled<Shape>& to = scaled_of(self, tile);
  const int step = self.place.thread / kWords, state = self.place.thread % kWords * 4;
  static_assert(kItems <= kDirectionThreads, "one for each thread");
  if (self.place.thread >= kItems) return;
  const uint32_t word = *reinterpret_cast<const uint32_t*>(&from.bc[step][Factor * Shape::kStates + state]);
  const float token_scale = from.scalars[Factor == kB ? kBTok : kCTok][step];
  float scaled[4];
  read4(scaled, &self.direction->state_scales[Factor][state]);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    scaled[i] = (static_cast<float>(static_cast<int8_t>(word >> (8 * i))) * scaled[i]) * token_scale;
  if constexpr (Factor == kB) {
    float* const b = to.b[step / kGroup] + state / 8 * 4 + state * kGroup + step % kGroup;
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i * kGroup] = scaled[i];
  } else {
    write(&to.c[step][state], scaled);
  }
}

// The lane as (channel, states)

// Where in delta, g and h a lane's channel has the first step of a group of the part.
template <class Shape>
VIMTRT_DEVICE int pair_at(int group, int lane) {
  return group * kGroup * Shape::kWarpChannels + lane / Shape::kLanes * kGroup;
}

template <bool Clamps, class Shape, int Groups>
VIMTRT_DEVICE void make_decays(Coefficients<Shape, Groups>& to, int group, const float (&delta)[kGroup],
                               const float (&decay_tok)[kGroup], const Decay<Shape>& decay) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
#pragma unroll
    for (int j = 0; j < Shape::kPerLane; ++j) {
      to.a[group][i][j] = exp2c_without_conversion<Clamps>(fmaf(delta[i], decay.a_log2[j], decay_tok[i]));
    }
  }
}

// b of a group's steps, and delta and the token's part of the exponent, of which a is made.
template <class Shape, int Groups>
VIMTRT_DEVICE void read_group(Coefficients<Shape, Groups>& to, float (&delta)[kGroup], float (&decay_tok)[kGroup],
                              const Thread<Shape>& self, int tile, int first, int group) {
  const int pair = pair_at<Shape>(group, self.place.lane), step = first + group * kGroup;
  const int state = self.place.lane % Shape::kLanes * Shape::kPerLane;
  const float* const b_row = scaled_of(self, tile).b[step / kGroup];
  float g[kGroup], b[kGroup];
  read4(delta, self.warp->delta + pair);
  read4(g, self.warp->g + pair);
  read4(decay_tok, stage_of(self, tile).scalars[kDecay] + step);
#pragma unroll
  for (int j = 0; j < Shape::kPerLane; ++j) {
    read4(b, b_row + (state + j) / 8 * 4 + (state + j) * kGroup);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) to.b[group][i][j] = g[i] * b[i];
  }
}

// The recurrence over a group.
template <bool Int8State, class Shape, int Groups>
VIMTRT_DEVICE void advance(float (&state)[Shape::kPerLane], const Coefficients<Shape, Groups>& with,
                           const Thread<Shape>& self, int group) {
  const int pair = pair_at<Shape>(group, self.place.lane);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    float h[Shape::kPerLane];
#pragma unroll
    for (int j = 0; j < Shape::kPerLane; ++j) {
      h[j] = fmaf(with.a[group][i][j], state[j], with.b[group][i][j]);
      state[j] = Int8State ? rounded_s8<(Shape::kWarpgroups > 1)>(h[j]) : h[j];
    }
    write(&self.warp->h[pair + i][self.place.lane % Shape::kLanes * Shape::kPerLane], h);
  }
}

// The lane as a pair

// delta and g of the part whose first step is `first` of the tile.
template <class Shape>
VIMTRT_DEVICE Operands begin_part(const Thread<Shape>& self, int tile, int first) {
  const Stage<Shape>& stage = stage_of(self, tile);
  const int step = first + self.pair.step, channel = self.pair.channel;
  const float delta = static_cast<float>(stage.rows[kDelta][step][channel] + 128);
  Operands operands;
  operands.u = static_cast<float>(stage.rows[kU][step][channel]);
  self.warp->delta[self.place.lane] = delta;
  self.warp->g[self.place.lane] = (delta * operands.u) * self.pair.input_scale;
  if (tile >= self.middle) {
    operands.gate = static_cast<float>(stage.rows[kGate][step][channel]) * self.pair.gate_scale;
    operands.out_inv = stage.scalars[kOutInv][step];
  }
  return operands;
}

// sum over the states of h * Cf, in the contract's order.
template <int States>
VIMTRT_DEVICE float sum_of_states(const float* h_row, const float* c_row) {
  constexpr int kChains = States / 4;
  float h[kChains][4], c[kChains][4], chain[kChains];
#pragma unroll
  for (int j = 0; j < kChains; ++j) {
    read4(h[j], h_row + 4 * j);
    read4(c[j], c_row + 4 * j);
    chain[j] = h[j][0] * c[j][0];
  }
#pragma unroll
  for (int i = 1; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < kChains; ++j) chain[j] = fmaf(h[j][i], c[j][i], chain[j]);
  }
  if constexpr (States == 16) {
    return (chain[0] + chain[1]) + (chain[2] + chain[3]);
  } else {
    return chain[0] + chain[1];
  }
}

// A pair's token, once its y is known. Steps behind the last one left h as it was; nothing of theirs is stored.
struct Output {
  bool exists;
  bool is_first;  // of the directions at this token: keeps its y for the other
  int token;
  float y;
};

template <class Shape>
VIMTRT_DEVICE Output make_output(const Thread<Shape>& self, const Operands& operands, int tile, int first) {
  const Pair& pair = self.pair;
  const float* const c_row = scaled_of(self, tile).c[first + pair.step];
  const float sum = sum_of_states<Shape::kStates>(self.warp->h[self.place.lane], c_row);
  const int step = tile * Shape::kTile + first + pair.step;
  const int mirrored = self.tokens - 1 - step;  // the other direction's step at this token
  const unsigned part = static_cast<unsigned>(step) / Shape::kPart,
                 other_part = static_cast<unsigned>(mirrored) / Shape::kPart;
  Output output;
  output.exists = pair.exists && mirrored >= 0;
  output.is_first = other_part > part || (other_part == part && self.place.d == 0);
  output.token = self.place.d == 0 ? step : mirrored;
  output.y = fmaf(operands.u, pair.skip_scale, sum * pair.y_scale);
  return output;
}

VIMTRT_DEVICE float* kept_at(const Merge& merge, int token) {
  return merge.kept + static_cast<int64_t>(token) * merge.kept_step;
}

VIMTRT_DEVICE void keep(const Merge& merge, const Output& output) {
  if (output.exists && output.is_first) *kept_at(merge, output.token) = output.y;
}

VIMTRT_DEVICE void finish(const Merge& merge, const Output& output, const Operands& operands) {
  if (!output.exists || output.is_first) return;
  const float o = (*kept_at(merge, output.token) + output.y) * operands.gate;
  const uint32_t q = cuda::quantized_s8(o * operands.out_inv);
  merge.y[static_cast<int64_t>(output.token) * merge.y_step] = static_cast<int8_t>(q);
}

// Narrow: one warpgroup, all in order

// Where no exponent of the warp can come near the limits of exp2c, its clamps are left out.
template <bool Int8State, class Shape>
VIMTRT_DEVICE void scan_group(float (&state)[Shape::kPerLane], const Thread<Shape>& self, int tile, int first) {
  Coefficients<Shape, 1> coefficients;
  float delta[kGroup], decay_tok[kGroup];
  read_group(coefficients, delta, decay_tok, self, tile, first, 0);
  const float most =
      fmaxf(fmaxf(fabsf(decay_tok[0]), fabsf(decay_tok[1])), fmaxf(fabsf(decay_tok[2]), fabsf(decay_tok[3])));
  if (most + self.decay.reach < kExp2Limit - 1.0f) {
    make_decays<false>(coefficients, 0, delta, decay_tok, self.decay);
    advance<Int8State>(state, coefficients, self, 0);
  } else {
    make_decays<true>(coefficients, 0, delta, decay_tok, self.decay);
    advance<Int8State>(state, coefficients, self, 0);
  }
}

template <bool Int8State, class Shape>
VIMTRT_DEVICE void scan_in_order(const Thread<Shape>& self, const Launch& launch) {
  float state[Shape::kPerLane] = {};
  Copies<Shape> copies = make_copies<Shape>(launch.p, self.place, 0);
  copy_tile(copies, self, launch, 0);
#pragma unroll 1
  for (int tile = 0; tile < self.tiles; ++tile) {
    cuda::wait_copies<0>();
    cuda::sync_block();  // the tile is there, and no one reads the previous one any more
    if (tile + 1 < self.tiles) copy_tile(copies, self, launch, tile + 1);
    scale<kB>(self, tile);
    scale<kC>(self, tile);
    cuda::sync_block();
#pragma unroll 1
    for (int first = 0; first < Shape::kTile && tile * Shape::kTile + first < self.tokens; first += Shape::kPart) {
      const Operands operands = begin_part(self, tile, first);
      cuda::sync_warp();
      scan_group<Int8State>(state, self, tile, first);
      cuda::sync_warp();
      const Output output = make_output(self, operands, tile, first);
      keep(self.merge, output);
      if (tile == self.middle) cuda::sync_block();
      finish(self.merge, output, operands);
    }
  }
}

// Wide: two warpgroups, a tile is one part

template <bool Int8State, class Shape>
VIMTRT_DEVICE void scan_ping_pong(const Thread<Shape>& self, const Launch& launch) {
  constexpr int kGroups = Shape::kPart / kGroup;
  const int warpgroup = self.place.warpgroup, tiles = self.tiles;
  float* const handed = self.direction->states[self.place.warp] + self.place.lane;
  Coefficients<Shape, kGroups> coefficients;
  Operands operands;

  // A warpgroup copies the tiles of the other, three phases ahead. Phase -1 makes the pairs and a, b of tile 0.
  Copies<Shape> copies = make_copies<Shape>(launch.p, self.place, 1 - warpgroup);
  if (1 - warpgroup < tiles) copy_tile(copies, self, launch, 1 - warpgroup);
  cuda::wait_copies<0>();
  cuda::sync_block();
  if (warpgroup == 0) scale<kB>(self, 0);

#pragma unroll 1
  for (int tile = -1; tile <= tiles; ++tile) {
    const bool runs = (tile & 1) == warpgroup;
    Operands next;
    Output output = {};
    cuda::wait_copies<0>();
    cuda::sync_block();  // what the other warpgroup made is there, and what it has read may go
    if (runs) {
      if (tile + 3 < tiles) copy_tile(copies, self, launch, tile + 3);
      if (tile >= 0 && tile < tiles) {
        float state[1] = {tile == 0 ? 0.0f : *handed};
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          if (tile * Shape::kTile + group * kGroup < self.tokens) advance<Int8State>(state, coefficients, self, group);
        }
        *handed = state[0];
        scale<kC>(self, tile);
      }
      if (tile + 2 < tiles) scale<kB>(self, tile + 2);
    } else {
      next = begin_part(self, tile + 1, 0);  // behind the last tile, of what the stage holds; it is not used
      if (tile > 0) {
        output = make_output(self, operands, tile - 1, 0);
        keep(self.merge, output);
      }
    }
    if (tile - 1 == self.middle) cuda::sync_block();
    if (!runs) {
      finish(self.merge, output, operands);
      operands = next;
      cuda::sync_warp();
      if (tile + 1 < tiles) {
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          float delta[kGroup], decay_tok[kGroup];
          read_group(coefficients, delta, decay_tok, self, tile + 1, 0, group);
          make_decays<true>(coefficients, group, delta, decay_tok, self.decay);
        }
      }
    }
  }
}

// The kernel

template <class Shape>
VIMTRT_DEVICE Place make_place(const Launch& launch) {
  const int thread = static_cast<int>(cuda::thread_x());
  const unsigned groups = static_cast<unsigned>(launch.groups);
  Place place;
  place.image = launch.first_image + cuda::block_x() / groups;
  place.first_channel = static_cast<int>(cuda::block_x() % groups) * Shape::kChannels;
  place.warpgroup = thread / (kWarpgroupWarps * kWarpThreads);
  place.d = thread / kDirectionThreads % kDirections;
  place.warp = thread / kWarpThreads % kDirectionWarps;
  place.thread = thread % kDirectionThreads;
  place.lane = cuda::lane();
  return place;
}

template <class Shape>
VIMTRT_DEVICE Pair make_pair(const BidirectionalScanParams& p, const Place& place) {
  Pair pair;
  pair.step = place.lane / (kGroup * Shape::kWarpChannels) * kGroup + place.lane % kGroup;
  pair.channel = place.warp * Shape::kWarpChannels + place.lane / kGroup % Shape::kWarpChannels;
  const int e = place.first_channel + pair.channel;
  pair.exists = e < p.channels;
  if (pair.exists) {
    const int64_t at = static_cast<int64_t>(place.d) * p.channels + e;
    pair.input_scale = cuda::load(p.input_scale + at);
    pair.y_scale = cuda::load(p.y_scale + at);
    pair.skip_scale = cuda::load(p.skip_scale + at);
    pair.gate_scale = cuda::load(p.gate_scale + e);
  }
  return pair;
}

template <class Shape>
VIMTRT_DEVICE Decay<Shape> make_decay(const BidirectionalScanParams& p, const Place& place) {
  constexpr float kMaxDelta = 255.0f;
  Decay<Shape> decay = {};
  const int channel = place.first_channel + place.warp * Shape::kWarpChannels + place.lane / Shape::kLanes;
  const int64_t row = static_cast<int64_t>(place.d) * p.channels + channel;
#pragma unroll
  for (int j = 0; j < Shape::kPerLane; ++j) {
    if (channel < p.channels)
      decay.a_log2[j] = cuda::load(p.a_log2 + row * Shape::kStates + place.lane % Shape::kLanes * Shape::kPerLane + j);
    decay.reach = fmaxf(decay.reach, kMaxDelta * fabsf(decay.a_log2[j]));
  }
  decay.reach = cuda::max_of_warp(decay.reach);
  return decay;
}

template <class Shape>
VIMTRT_DEVICE Merge make_merge(const Launch& launch, float* shared, const Place& place, const Pair& pair) {
  const int64_t first = place.image * launch.p.tokens * launch.p.channels + place.first_channel + pair.channel;
  Merge m;
  m.kept = launch.workspace != nullptr ? launch.workspace + first : shared + pair.channel;
  m.kept_step = launch.workspace != nullptr ? launch.p.channels : Shape::kChannels;
  m.y = launch.p.y + first;
  m.y_step = launch.p.channels;
  return m;
}

template <class Shape, bool Int8State>
VIMTRT_KERNEL void bidirectional_scan_kernel(Launch launch) {
  const BidirectionalScanParams& p = launch.p;
  Shared<Shape>* const shared = cuda::dynamic_shared<Shared<Shape>>();
  Thread<Shape> self;
  self.place = make_place<Shape>(launch);
  const Place& place = self.place;
  self.direction = &shared->directions[place.d];
  self.warp = &shared->warps[(place.warpgroup * kDirections + place.d) * kDirectionWarps + place.warp];
  self.pair = make_pair<Shape>(p, place);
  self.merge = make_merge<Shape>(launch, reinterpret_cast<float*>(shared + 1), place, self.pair);
  self.decay = make_decay<Shape>(p, place);
  self.tokens = p.tokens;
  self.tiles = (p.tokens - 1) / Shape::kTile + 1;
  self.middle = (p.tokens - 1) / (2 * Shape::kTile);
  self.row_bytes = limited(p.channels - place.first_channel, Shape::kChannels);

  if (place.warpgroup == 0 && place.thread < 2 * Shape::kStates) {
    const float* from = place.thread < Shape::kStates ? p.b_scale_state : p.c_scale_state;
    (&self.direction->state_scales[0][0])[place.thread] =
        cuda::load(from + place.d * Shape::kStates + place.thread % Shape::kStates);
  }
  if constexpr (Shape::kWarpgroups == 1) {
    scan_in_order<Int8State>(self, launch);
  } else {
    scan_ping_pong<Int8State>(self, launch);
  }
}

// The launch

using cuda::address;
using cuda::ceil_div;
using cuda::width_of;

int64_t groups_of(const BidirectionalScanParams& p, int channels) { return ceil_div(p.channels, channels); }

template <int States>
bool is_narrow(const BidirectionalScanParams& p) {
  return p.batch >= ceil_div(kManyBlocks, groups_of(p, Narrow<States>::kChannels));
}

template <class Shape>
size_t shared_bytes(const BidirectionalScanParams& p, bool with_workspace) {
  return sizeof(Shared<Shape>) + (with_workspace ? 0 : sizeof(float) * Shape::kChannels * p.tokens);
}

template <class Shape>
size_t workspace_bytes(const BidirectionalScanParams& p) {
  return shared_bytes<Shape>(p, false) <= kMaxSharedBytes ? 0 : sizeof(float) * p.batch * p.tokens * p.channels;
}

template <class Shape>
int launch_layout(const BidirectionalScanParams& p, cuda::Stream stream, void* workspace) {
  const bool with_workspace = workspace_bytes<Shape>(p) > 0;
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

  const auto kernel =
      p.state == ScanState::kInt8 ? bidirectional_scan_kernel<Shape, true> : bidirectional_scan_kernel<Shape, false>;
  const size_t shared = shared_bytes<Shape>(p, with_workspace);
  cuda::Grid grid;
  return cuda::launch_in_parts(p.batch, cuda::kMaxGridX / launch.groups, [&](int64_t first_image, int64_t images) {
    launch.first_image = first_image;
    grid.x = static_cast<unsigned>(images * launch.groups);
    return cuda::launch(kernel, grid, Shape::kThreads, shared, stream, launch);
  });
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
