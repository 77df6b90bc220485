// BidirectionalScan on a GPU (docs/numerics.md). README.md beside this file has the numbers.
//
// Grid:   x = images times groups of channels, a group's channels lying side by side.
// Block:  a warpgroup has two warps for the forward direction of the group and two for the backward one. "Wide" has two
//         warpgroups, 256 threads; "narrow" has one, 128 threads.
// Shared: 15 to 46 KiB, and 4 bytes per token and channel of the group for the merge; where the two are more than
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
//
// The int16 state has the same layouts and order. Its decays come from tables in shared memory, made once a block, and
// b, c, g and h are integers. S has no order: in narrow a lane adds up its own states, and the pair the sums of four
// lanes.
#include <cmath>
#include <cstdint>

#include "plugins/bidirectional_scan/int16.h"
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
  using State = float;
  static_assert(kPart % kGroup == 0 && Tile % kPart == 0, "parts are whole groups, tiles whole parts");
};

template <int States>
using Wide = Layout<States, States, States, 2>;
template <int States>
using Narrow = Layout<States, kGroup, 16, 1>;

// The same for the int16 state.
template <class Base>
struct Int16 : Base {
  using State = int32_t;
  static constexpr bool kWide = Base::kPerLane == 1;
  static constexpr int kBlocks = kWide                 ? 2
                                 : Base::kStates == 16 ? 4
                                                       : 5;  // of a processor with 228 KiB of shared memory
};

// What the launcher adds to the operator's arguments; widths as in cuda_copies.h.
struct Launch {
  BidirectionalScanParams p;
  int64_t first_image = 0;
  int32_t groups = 0;  // of channels
  int32_t row_width = 1, bc_width = 1;
  float* workspace = nullptr;
  int32_t rounding = (1 << 14) - 1;  // of the int16 state; as a constant it would cost an instruction each time
  int32_t images_per_block = 1;      // of the int16 state
  int64_t end_image = 0;
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

// The int16 state. Bi and Ci of a tile: in wide a lane reads a state's four steps of Bi at once, as above, in narrow
// four states of a step. No row of Ci or h is padded: what shares banks is told apart by int16_row and int16_quad.
template <class Base>
struct alignas(16) Scaled<Int16<Base>> {
  static constexpr int kGroupPitch = kGroup * Base::kStates + (Base::kPerLane == 1 ? 8 : 0);
  int32_t b[Base::kTile / kGroup][kGroupPitch];
  int32_t c[Base::kTile][Base::kStates];
  float c_tok[Base::kPerLane == 1 ? Base::kTile : 4];  // for wide, which reads it when the stage has gone
};

// High and minus Low of a warp's channels and states, a row of every power: whatever powers the lanes read, lane i
// finds its states in the same banks, which are no other lane's.
template <class Base>
struct alignas(16) Tables {
  static constexpr int kRow = kWarpThreads * Base::kPerLane;
  uint16_t high[kInt16Powers][kRow];
  uint16_t low[kInt16Powers][kRow];
};

template <class Base>
struct alignas(16) Direction<Int16<Base>> {
  Stage<Int16<Base>> stages[Base::kStages];
  Scaled<Int16<Base>> scaled[Base::kWarpgroups];
  Tables<Base> tables[kDirectionWarps];
  float state_scales[2][Base::kStates];                                        // of B, of C
  int32_t states[kDirectionWarps][Base::kWarpgroups == 1 ? 4 : kWarpThreads];  // from warpgroup to warpgroup
};

// high_at and low_at are where the tables have the pair's rows, in bytes; low_at is negative where the drive is in
// sixteenths. Wide leaves every h for the pairs, narrow each lane's part of the sums of h * Ci.
template <class Base>
struct alignas(16) Warp<Int16<Base>> {
  int32_t high_at[kWarpThreads];
  int32_t low_at[kWarpThreads];
  int32_t g[kWarpThreads];
  int32_t h[kWarpThreads * (Base::kPerLane == 1 ? Base::kStates : kGroup)];
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

// Where a lane's states stand in the first row of the tables.
template <class Base>
struct Decay<Int16<Base>> {
  const int8_t* entries;
  int32_t rounding;
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

// h = saturated((a * state + b) >> 15): b holds Bi g, rounded to 16 bits, and behind them what rounds the sum.
template <class Base, int Groups>
struct Coefficients<Int16<Base>, Groups> {
  int32_t a[Groups][kGroup][Base::kPerLane], b[Groups][kGroup][Base::kPerLane];
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

// a and b of all groups of a tile.
template <class Shape, int Groups>
VIMTRT_DEVICE void make_coefficients(Coefficients<Shape, Groups>& to, const Thread<Shape>& self, int tile) {
#pragma unroll
  for (int group = 0; group < Groups; ++group) {
    float delta[kGroup], decay_tok[kGroup];
    read_group(to, delta, decay_tok, self, tile, 0, group);
    make_decays<true>(to, group, delta, decay_tok, self.decay);
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

template <class Shape>
VIMTRT_DEVICE float sum_of_pair(const Thread<Shape>& self, int tile, int step) {
  return sum_of_states<Shape::kStates>(self.warp->h[self.place.lane], scaled_of(self, tile).c[step]) *
         self.pair.y_scale;
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
  const float sum = sum_of_pair(self, tile, first + pair.step);
  const int step = tile * Shape::kTile + first + pair.step;
  const int mirrored = self.tokens - 1 - step;  // the other direction's step at this token
  const unsigned part = static_cast<unsigned>(step) / Shape::kPart,
                 other_part = static_cast<unsigned>(mirrored) / Shape::kPart;
  Output output;
  output.exists = pair.exists && mirrored >= 0;
  output.is_first = other_part > part || (other_part == part && self.place.d == 0);
  output.token = self.place.d == 0 ? step : mirrored;
  output.y = fmaf(operands.u, pair.skip_scale, sum);
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

// The int16 state. numerics.md has a = mul(High, Low), minus the decay, and h = sat16(b - mul(h, a)). With the tables'
// positive product the signs of both roundings turn:
//
//   decay = (High * -Low + 2^14 - 1) >> 15
//   h     = sat16((h * decay + (b * 2^15 + 2^14 - 1)) >> 15)
//
// b * 2^15 is Bi * g + 2^14 without its low 15 bits. With |b| <= 32768 and decay <= 32767 no sum passes an int32.

constexpr int32_t kInt16Half = 1 << 14, kInt16LowBits = (1 << 15) - 1;

// int(x) of numerics.md without the conversion unit.
VIMTRT_DEVICE int32_t int16_from(float x) {
  const float clamped = fminf(fmaxf(x, -32767.0f), 32767.0f);
  return static_cast<int32_t>(to_bits(clamped + kWhole)) - cuda::kWholeBits;
}

VIMTRT_DEVICE int32_t int16_state(int32_t state, int32_t a, int32_t b) { return int16_saturate((state * a + b) >> 15); }

// Of 1, 2 or 4 neighbours.
template <int Count>
VIMTRT_DEVICE void read(int32_t (&to)[Count], const int32_t* from) {
  if constexpr (Count == 4) {
    const int4 v = *reinterpret_cast<const int4*>(from);
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
  } else if constexpr (Count == 2) {
    const int2 v = *reinterpret_cast<const int2*>(from);
    to[0] = v.x;
    to[1] = v.y;
  } else {
    static_assert(Count == 1, "1, 2 or 4");
    to[0] = *from;
  }
}

template <int Count>
VIMTRT_DEVICE void read(int32_t (&to)[Count], const uint16_t* from) {
  if constexpr (Count == 1) {
    to[0] = *from;
  } else {
    int32_t words[Count / 2];
    read(words, reinterpret_cast<const int32_t*>(from));
#pragma unroll
    for (int j = 0; j < Count; ++j) {
      const uint32_t word = static_cast<uint32_t>(words[j / 2]);
      to[j] = static_cast<int32_t>(j % 2 == 0 ? word & 0xffff : word >> 16);
    }
  }
}

template <int Count>
VIMTRT_DEVICE void write(int32_t* to, const int32_t (&v)[Count]) {
  static_assert(Count == 4, "four at once");
  *reinterpret_cast<int4*>(to) = int4{v[0], v[1], v[2], v[3]};
}

// A row of a table from the powers of a lane's states, `most` at most.
template <int Count>
VIMTRT_DEVICE void write_row(uint16_t* to, const float (&powers)[Count], float most) {
  uint32_t entries[Count];
#pragma unroll
  for (int j = 0; j < Count; ++j) entries[j] = to_bits(fminf(powers[j] * kInt16One, most) + kWhole) & 0xffff;
  if constexpr (Count == 1) {
    to[0] = static_cast<uint16_t>(entries[0]);
  } else {
#pragma unroll
    for (int j = 0; j < Count; j += 2) reinterpret_cast<uint32_t*>(to)[j / 2] = entries[j] | entries[j + 1] << 16;
  }
}

// The tables of the warp's channels: a lane makes those of its states, in wide one warpgroup High and the other Low.
template <class Base>
VIMTRT_DEVICE void make_tables(Direction<Int16<Base>>& direction, const BidirectionalScanParams& p,
                               const Place& place) {
  constexpr int kPerLane = Base::kPerLane;
  const int channel = place.first_channel + place.warp * Base::kWarpChannels + place.lane / Base::kLanes;
  const int64_t row = static_cast<int64_t>(place.d) * p.channels + channel;
  float a_log2[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const float* from = p.a_log2 + row * Base::kStates + place.lane % Base::kLanes * kPerLane + j;
    a_log2[j] = channel < p.channels ? cuda::load(from) : 0.0f;
  }
  Tables<Base>& tables = direction.tables[place.warp];
#pragma unroll 1
  for (int which = place.warpgroup; which < 2; which += Base::kWarpgroups) {
    const float delta = which == 0 ? 16.0f : 1.0f, most = which == 0 ? kInt16One - 1.0f : kInt16One;
    uint16_t* to = (which == 0 ? &tables.high[0][0] : &tables.low[0][0]) + place.lane * kPerLane;
    float even[kPerLane], odd[kPerLane], square[kPerLane];
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      even[j] = 1.0f;
      odd[j] = exp2c_without_conversion<true>(delta * a_log2[j]);
      square[j] = odd[j] * odd[j];
    }
#pragma unroll 1
    for (int power = 0; power < kInt16Powers; power += 2) {
      write_row(to, even, most);
      write_row(to + Tables<Base>::kRow, odd, most);
      to += 2 * Tables<Base>::kRow;
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        even[j] *= square[j];
        odd[j] *= square[j];
      }
    }
  }
}

// Bi or Ci of a tile.
template <Which Factor, class Base>
VIMTRT_DEVICE void scale(const Thread<Int16<Base>>& self, int tile) {
  constexpr int kWords = Base::kStates / 4, kItems = Base::kTile * kWords;
  const Stage<Int16<Base>>& from = stage_of(self, tile);
  Scaled<Int16<Base>>& to = scaled_of(self, tile);
  const unsigned thread = static_cast<unsigned>(self.place.thread), step = thread / kWords, state = thread % kWords * 4;
  static_assert(kItems <= kDirectionThreads, "one for each thread");
  if (self.place.thread >= kItems) return;
  const uint32_t word = *reinterpret_cast<const uint32_t*>(&from.bc[step][Factor * Base::kStates + state]);
  float factor[4];
  read4(factor, &self.direction->state_scales[Factor][state]);
  int32_t scaled[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    scaled[i] = int16_from(static_cast<float>(static_cast<int8_t>(word >> (8 * i))) * factor[i]);
  if constexpr (Factor == kC) {
    write(&to.c[step][state], scaled);
    if (Int16<Base>::kWide && state == 0) to.c_tok[step] = from.scalars[kCTok][step];
  } else if constexpr (Int16<Base>::kWide) {
    int32_t* const b = to.b[step / kGroup] + state / 8 * 4 + state * kGroup + step % kGroup;
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i * kGroup] = scaled[i];
  } else {
    write(&to.b[0][0] + step * Base::kStates + state, scaled);
  }
}

VIMTRT_DEVICE float int16_y(const Pair& pair, uint32_t sum, float c_tok) {
  return (static_cast<float>(static_cast<int32_t>(sum)) * pair.y_scale) * c_tok;
}

// Where the tables have the pair's rows, and g.
template <class Base>
VIMTRT_DEVICE void int16_begin(const Thread<Int16<Base>>& self, int32_t delta, int32_t u, float b_tok) {
  constexpr int kRowBytes = sizeof(Tables<Base>::high[0]), kLow = sizeof(Tables<Base>::high);
  const float drive = (static_cast<float>(delta * u) * self.pair.input_scale) * b_tok;
  const bool is_large = !(fabsf(drive) < kInt16LargeDrive);
  self.warp->high_at[self.place.lane] = (delta & 0xf0) * (kRowBytes / kInt16Powers);
  self.warp->low_at[self.place.lane] = (delta & 0x0f) * kRowBytes + (is_large ? kLow + INT32_MIN : kLow);
  self.warp->g[self.place.lane] = int16_from(is_large ? drive * kInt16Sixteenth : drive);
}

template <class Base>
VIMTRT_DEVICE Operands begin_part(const Thread<Int16<Base>>& self, int tile, int first) {
  const Stage<Int16<Base>>& stage = stage_of(self, tile);
  const int step = first + self.pair.step, channel = self.pair.channel;
  const int32_t u = stage.rows[kU][step][channel];
  int16_begin(self, stage.rows[kDelta][step][channel] + 128, u, stage.scalars[kBTok][step]);
  Operands operands;
  operands.u = static_cast<float>(u);
  if (tile >= self.middle) {
    operands.gate = static_cast<float>(stage.rows[kGate][step][channel]) * self.pair.gate_scale;
    operands.out_inv = stage.scalars[kOutInv][step];
  }
  return operands;
}

// Bi * g + 2^14 where g is a sixteenth of the drive.
VIMTRT_DEVICE int32_t int16_large_drive(int32_t b) { return int16_saturate((b >> 15) * 16) * (1 << 15); }

// a and b of a group's steps, of which b holds Bi * g + 2^14, for drives that are not large: low_at is not negative.
template <class Base>
VIMTRT_DEVICE void int16_coefficients(int32_t (&a)[kGroup][Base::kPerLane], int32_t (&b)[kGroup][Base::kPerLane],
                                      const Thread<Int16<Base>>& self, int pair, const int32_t (&low_at)[kGroup]) {
  constexpr int kPerLane = Base::kPerLane;
  int32_t high_at[kGroup];
  read(high_at, self.warp->high_at + pair);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    int32_t highs[kPerLane], lows[kPerLane];
    read(highs, reinterpret_cast<const uint16_t*>(self.decay.entries + high_at[i]));
    read(lows, reinterpret_cast<const uint16_t*>(self.decay.entries + low_at[i]));
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      a[i][j] = (highs[j] * lows[j] + (kInt16Half - 1)) >> 15;
      b[i][j] = (b[i][j] & ~kInt16LowBits) | self.decay.rounding;
    }
  }
}

// Bi * g + 2^14 of a group's steps, and where their rows of Low are. Large drives are rare: all groups ask for them at
// once.
template <class Base, int Groups>
VIMTRT_DEVICE void int16_large_drives(int32_t (&b)[Groups][kGroup][Base::kPerLane], int32_t (&low_at)[Groups][kGroup]) {
  int32_t signs = 0;
#pragma unroll
  for (int group = 0; group < Groups; ++group)
    signs |= low_at[group][0] | low_at[group][1] | low_at[group][2] | low_at[group][3];
  if (signs >= 0) return;
#pragma unroll
  for (int group = 0; group < Groups; ++group) {
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (low_at[group][i] >= 0) continue;
      low_at[group][i] -= INT32_MIN;
#pragma unroll
      for (int j = 0; j < Base::kPerLane; ++j) b[group][i][j] = int16_large_drive(b[group][i][j]);
    }
  }
}

// Wide

template <class Base, int Groups>
VIMTRT_DEVICE void make_coefficients(Coefficients<Int16<Base>, Groups>& to, const Thread<Int16<Base>>& self, int tile) {
  const int state = self.place.lane % Base::kLanes;
  int32_t low_at[Groups][kGroup];
#pragma unroll
  for (int group = 0; group < Groups; ++group) {
    const int pair = pair_at<Base>(group, self.place.lane);
    int32_t b[kGroup], g[kGroup];
    read(g, self.warp->g + pair);
    read(low_at[group], self.warp->low_at + pair);
    read(b, scaled_of(self, tile).b[group] + state / 8 * 4 + state * kGroup);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) to.b[group][i][0] = b[i] * g[i] + kInt16Half;
  }
  int16_large_drives<Base>(to.b, low_at);
#pragma unroll
  for (int group = 0; group < Groups; ++group)
    int16_coefficients(to.a[group], to.b[group], self, pair_at<Base>(group, self.place.lane), low_at[group]);
}

// Where h has a pair's row, and from which four states on the pair reads it. So neither the channels of a warp, which
// write at once, nor eight neighbouring pairs, which read at once, meet in a bank.
template <class Base>
VIMTRT_DEVICE int int16_row(int pair) {
  return pair ^ (pair / kGroup % Base::kWarpChannels);
}
template <class Base>
VIMTRT_DEVICE int int16_quad(int quad, int pair) {
  return quad ^ (pair / Base::kWarpChannels % (Base::kStates / 4));
}

template <bool Int8State, class Base, int Groups>
VIMTRT_DEVICE void advance(int32_t (&state)[1], const Coefficients<Int16<Base>, Groups>& with,
                           const Thread<Int16<Base>>& self, int group) {
  const int pair = pair_at<Base>(group, self.place.lane);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    state[0] = int16_state(state[0], with.a[group][i][0], with.b[group][i][0]);
    self.warp->h[int16_row<Base>(pair + i) * Base::kStates + self.place.lane % Base::kLanes] = state[0];
  }
}

// sum over the states of h * Ci, with its scales.
template <class Base>
VIMTRT_DEVICE float sum_of_pair(const Thread<Int16<Base>>& self, int tile, int step) {
  const int lane = self.place.lane;
  const int32_t* const h_row = self.warp->h + int16_row<Base>(lane) * Base::kStates;
  uint32_t sum = 0;
#pragma unroll
  for (int j = 0; j < Base::kStates / 4; ++j) {
    const int state = int16_quad<Base>(j, lane) * 4;
    int32_t h[4], c[4];
    read(h, h_row + state);
    read(c, scaled_of(self, tile).c[step] + state);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum += static_cast<uint32_t>(h[i] * c[i]);
  }
  return int16_y(self.pair, sum, scaled_of(self, tile).c_tok[step]);
}

// Narrow: what a part needs stands at pointers that go on from part to part, for counting costs as much as the work.

struct Int16Part {
  const int8_t* rows;    // of the pair
  const float* scalars;  // of the pair
  const int32_t* b;      // of the lane's states
  const int32_t* c;
};

// Where a lane leaves its four sums: lane 4 c + q at 4 c + (q ^ c / 2), so that eight lanes write into all banks and 32
// pairs read from all.
VIMTRT_DEVICE int int16_sums(int lane) { return (lane ^ (lane / 8 % 4)) * kGroup; }

// The part up to y of the pair, without the skip.
template <class Base>
VIMTRT_DEVICE float int16_part(int32_t (&state)[Base::kPerLane], const Thread<Int16<Base>>& self,
                               const Int16Part& part) {
  constexpr int kPerLane = Base::kPerLane, kRow = Base::kTile * Base::kChannels;
  const int lane = self.place.lane, pair = pair_at<Base>(0, lane);
  int16_begin(self, part.rows[kDelta * kRow] + 128, part.rows[kU * kRow], part.scalars[kBTok * Base::kTile]);
  cuda::sync_warp();
  int32_t g[kGroup], low_at[1][kGroup], a[kGroup][kPerLane], b[1][kGroup][kPerLane];
  uint32_t sums[kGroup] = {};
  read(g, self.warp->g + pair);
  read(low_at[0], self.warp->low_at + pair);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    read(b[0][i], part.b + i * Base::kStates);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) b[0][i][j] = b[0][i][j] * g[i] + kInt16Half;
  }
  int16_large_drives<Base>(b, low_at);
  int16_coefficients(a, b[0], self, pair, low_at[0]);
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    int32_t c[kPerLane];
    read(c, part.c + i * Base::kStates);
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      state[j] = int16_state(state[j], a[i][j], b[0][i][j]);
      sums[i] += static_cast<uint32_t>(state[j] * c[j]);
    }
  }
  *reinterpret_cast<uint4*>(self.warp->h + int16_sums(lane)) = uint4{sums[0], sums[1], sums[2], sums[3]};
  cuda::sync_warp();
  uint32_t sum = 0;
#pragma unroll
  for (int j = 0; j < Base::kLanes; ++j)
    sum += static_cast<uint32_t>(self.warp->h[int16_sums(lane / Base::kLanes * Base::kLanes + j) + self.pair.step]);
  return int16_y(self.pair, sum, part.scalars[kCTok * Base::kTile]);
}

template <bool Int8State, class Base>
VIMTRT_DEVICE void scan_in_order(const Thread<Int16<Base>>& self, const Launch& launch) {
  constexpr int kTile = Base::kTile, kPart = Base::kPart, kRow = kTile * Base::kChannels;
  const Pair& pair = self.pair;
  const Scaled<Int16<Base>>& scaled = self.direction->scaled[0];
  const int sign = self.place.d == 0 ? 1 : -1, token = self.place.d == 0 ? pair.step : self.tokens - 1 - pair.step;
  const int64_t kept_advance = static_cast<int64_t>(sign * kPart) * self.merge.kept_step;
  const int64_t y_advance = static_cast<int64_t>(sign * kPart) * self.merge.y_step;
  float* kept = self.merge.kept + static_cast<int64_t>(token) * self.merge.kept_step;
  int8_t* y = self.merge.y + static_cast<int64_t>(token) * self.merge.y_step;
  // Steps that the pair still has; it keeps y while more than first_left are left. Of its parts the first direction has
  // the first half: of a part in the middle the forward one.
  int left = pair.exists ? self.tokens - pair.step : 0;
  const int parts = (left + kPart - 1) / kPart, firsts = (parts + (self.place.d == 0 ? 1 : 0)) / 2;
  const int first_left = left > firsts * kPart ? left - firsts * kPart : 0;
  int32_t state[Base::kPerLane] = {};
  Copies<Int16<Base>> copies = make_copies<Int16<Base>>(launch.p, self.place, 0);
  copy_tile(copies, self, launch, 0);
#pragma unroll 1
  for (int tile = 0; tile < self.tiles; ++tile) {
    cuda::wait_copies<0>();
    cuda::sync_block();  // the tile is there, and no one reads the previous one any more
    if (tile + 1 < self.tiles) copy_tile(copies, self, launch, tile + 1);
    scale<kB>(self, tile);
    scale<kC>(self, tile);
    cuda::sync_block();
    const Stage<Int16<Base>>& stage = stage_of(self, tile);
    const int first_state = self.place.lane % Base::kLanes * Base::kPerLane;
    Int16Part part = {&stage.rows[0][pair.step][pair.channel], &stage.scalars[0][pair.step],
                      &scaled.b[0][0] + first_state, &scaled.c[0][0] + first_state};
    const int steps = tile + 1 < self.tiles ? kTile : self.tokens - tile * kTile;
#pragma unroll 1
    for (int first = 0; first < steps; first += kPart) {
      const float sum = int16_part(state, self, part);
      const float u = static_cast<float>(part.rows[kU * kRow]);
      const float own = fmaf(u, pair.skip_scale, sum);
      const bool keeps = left > first_left;
      if (keeps) *kept = own;
      if (tile == self.middle) cuda::sync_block();
      if (!keeps && left > 0) {
        const float gate = static_cast<float>(part.rows[kGate * kRow]) * pair.gate_scale;
        const float o = (*kept + own) * gate;
        *y = static_cast<int8_t>(cuda::quantized_s8(o * part.scalars[kOutInv * kTile]));
      }
      kept += kept_advance;
      y += y_advance;
      left -= kPart;
      part.rows += kPart * Base::kChannels;
      part.scalars += kPart;
      part.b += kPart * Base::kStates;
      part.c += kPart * Base::kStates;
    }
  }
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
  typename Shape::State state[Shape::kPerLane] = {};
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

// Whether the groups behind the last token, of which nothing is stored, are run all the same: to ask costs as much.
template <class Shape>
constexpr bool kEveryGroup = false;
template <class Base>
constexpr bool kEveryGroup<Int16<Base>> = true;

template <bool Int8State, class Shape>
VIMTRT_DEVICE void scan_ping_pong(const Thread<Shape>& self, const Launch& launch) {
  constexpr int kGroups = Shape::kPart / kGroup;
  const int warpgroup = self.place.warpgroup, tiles = self.tiles;
  typename Shape::State* const handed = self.direction->states[self.place.warp] + self.place.lane;
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
        typename Shape::State state[1] = {tile == 0 ? typename Shape::State(0) : *handed};
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          if (kEveryGroup<Shape> || tile * Shape::kTile + group * kGroup < self.tokens)
            advance<Int8State>(state, coefficients, self, group);
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
      if (tile + 1 < tiles) make_coefficients(coefficients, self, tile + 1);
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

// What a thread is and has; and the scales of B and C, which are there after a barrier.
template <class Shape, class MakeDecay>
VIMTRT_DEVICE void begin_thread(Thread<Shape>& self, const Launch& launch, Shared<Shape>* shared,
                                const MakeDecay& make_decay_of) {
  const BidirectionalScanParams& p = launch.p;
  self.place = make_place<Shape>(launch);
  const Place& place = self.place;
  self.direction = &shared->directions[place.d];
  self.warp = &shared->warps[(place.warpgroup * kDirections + place.d) * kDirectionWarps + place.warp];
  self.pair = make_pair<Shape>(p, place);
  self.merge = make_merge<Shape>(launch, reinterpret_cast<float*>(shared + 1), place, self.pair);
  self.decay = make_decay_of(place);
  self.tokens = p.tokens;
  self.tiles = (p.tokens - 1) / Shape::kTile + 1;
  self.middle = (p.tokens - 1) / (2 * Shape::kTile);
  self.row_bytes = limited(p.channels - place.first_channel, Shape::kChannels);

  if (place.warpgroup == 0 && place.thread < 2 * Shape::kStates) {
    const float* from = place.thread < Shape::kStates ? p.b_scale_state : p.c_scale_state;
    (&self.direction->state_scales[0][0])[place.thread] =
        cuda::load(from + place.d * Shape::kStates + place.thread % Shape::kStates);
  }
}

template <class Shape, bool Int8State>
VIMTRT_KERNEL void bidirectional_scan_kernel(Launch launch) {
  Shared<Shape>* const shared = cuda::dynamic_shared<Shared<Shape>>();
  Thread<Shape> self;
  begin_thread(self, launch, shared, [&](const Place& place) { return make_decay<Shape>(launch.p, place); });
  if constexpr (Shape::kWarpgroups == 1) {
    scan_in_order<Int8State>(self, launch);
  } else {
    scan_ping_pong<Int8State>(self, launch);
  }
}

// Of the int16 state. As many registers as the blocks that fit a processor by their shared memory leave.
template <class Shape>
VIMTRT_KERNEL_OF(Shape::kThreads, Shape::kBlocks)
void int16_bidirectional_scan_kernel(Launch launch) {
  Shared<Shape>* const shared = cuda::dynamic_shared<Shared<Shape>>();
  Thread<Shape> self;
  begin_thread(self, launch, shared, [&](const Place& place) {
    make_tables(shared->directions[place.d], launch.p, place);
    const uint16_t* const entries =
        shared->directions[place.d].tables[place.warp].high[0] + place.lane * Shape::kPerLane;
    return Decay<Shape>{reinterpret_cast<const int8_t*>(entries), launch.rounding};
  });
  if constexpr (Shape::kWide) {
    scan_ping_pong<false>(self, launch);
  } else {
    const int64_t images = launch.images_per_block;
    const int64_t first = launch.first_image + cuda::block_x() / static_cast<unsigned>(launch.groups) * images;
    const int64_t end = first + images < launch.end_image ? first + images : launch.end_image;
#pragma unroll 1
    for (self.place.image = first; self.place.image < end; ++self.place.image) {
      self.merge = make_merge<Shape>(launch, reinterpret_cast<float*>(shared + 1), self.place, self.pair);
      scan_in_order<false>(self, launch);
      cuda::sync_block();  // no one reads the last tile any more
    }
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

// Consecutive images of the same channels share a block's tables, which take as long as 0.7 tiles of narrow. But S
// images a block also make the last round S times as long, half of it in vain on average. That costs more unless 0.7 *
// S * tiles rounds are left over. Here there are twice as many, with the 528 blocks that an H100 holds at once: at
// least 1056 blocks for each tile of an image are left, 13,728 for 197 tokens.
template <class Shape>
int32_t images_per_block(const BidirectionalScanParams& p) {
  constexpr int64_t kBlocksPerTile = 2 * 528, kMost = 64;
  if (Shape::kWide) return 1;
  const int64_t blocks = p.batch * groups_of(p, Shape::kChannels);
  const int64_t images = blocks / (kBlocksPerTile * ceil_div(p.tokens, Shape::kTile));
  return static_cast<int32_t>(images < 1 ? 1 : images < kMost ? images : kMost);
}

template <class Shape>
int launch_kernel(void (*kernel)(Launch), const BidirectionalScanParams& p, cuda::Stream stream, void* workspace,
                  int32_t images_per_block = 1) {
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

  launch.images_per_block = images_per_block;
  const size_t shared = shared_bytes<Shape>(p, with_workspace);
  cuda::Grid grid;
  return cuda::launch_in_parts(p.batch, cuda::kMaxGridX / launch.groups, [&](int64_t first_image, int64_t images) {
    launch.first_image = first_image;
    launch.end_image = first_image + images;
    grid.x = static_cast<unsigned>(ceil_div(images, launch.images_per_block) * launch.groups);
    return cuda::launch(kernel, grid, Shape::kThreads, shared, stream, launch);
  });
}

template <class Shape>
size_t layout_workspace_bytes(const BidirectionalScanParams& p) {
  return p.state == ScanState::kInt16 ? workspace_bytes<Int16<Shape>>(p) : workspace_bytes<Shape>(p);
}

template <class Shape>
int launch_layout(const BidirectionalScanParams& p, cuda::Stream stream, void* workspace) {
  if (p.state == ScanState::kInt16) {
    using Of16 = Int16<Shape>;
    return launch_kernel<Of16>(int16_bidirectional_scan_kernel<Of16>, p, stream, workspace, images_per_block<Of16>(p));
  }
  const auto kernel =
      p.state == ScanState::kInt8 ? bidirectional_scan_kernel<Shape, true> : bidirectional_scan_kernel<Shape, false>;
  return launch_kernel<Shape>(kernel, p, stream, workspace);
}

}  // namespace

size_t bidirectional_scan_workspace_bytes(const BidirectionalScanParams& p) {
  if (p.states == 16)
    return is_narrow<16>(p) ? layout_workspace_bytes<Narrow<16>>(p) : layout_workspace_bytes<Wide<16>>(p);
  return is_narrow<8>(p) ? layout_workspace_bytes<Narrow<8>>(p) : layout_workspace_bytes<Wide<8>>(p);
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
