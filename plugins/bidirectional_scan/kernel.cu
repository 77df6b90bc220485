// BidirectionalScan on a GPU (docs/numerics.md). README.md beside this file has the numbers.
//
// Grid:   x = images times groups of channels, a group's channels lying side by side.
// Block:  128 threads: two warps scan the group forward, two backward.
// Shared: 17 to 30 KiB, and 4 bytes per token and channel of the group for the merge, together up to 48 KiB; if they would be more, the
// latter
//         lie in the workspace.
//
// A recurrence is a chain over the tokens, so only channels, states and directions are parallel. A channel's N states lie in kLanes lanes,
// N / kLanes states in each, and a warp holds 32 / kLanes channels. It takes kLanes tokens at a time, a part, so that its lanes are also
// all pairs of a token and a channel:
//
//   N = 16, kLanes = 16 ("wide")                               N = 16, kLanes = 4 ("narrow")
//   scan:  lane = 16 channel + state, 16 tokens in turn        scan:  lane = 4 channel + state / 4, 4 tokens in turn
//          ch 0: n0 n1 .. n15 | ch 1: n0 n1 .. n15                    ch 0: n0-3 n4-7 n8-11 n12-15 | ch 1: .. | .. ch 7
//   else:  lane = 8 (token / 4) + 4 channel + token % 4        else:  lane = 4 channel + token
//          t0-3 of ch 0 | t0-3 of ch 1 | t4-7 of ch 0 | ..            t0-3 of ch 0 | t0-3 of ch 1 | .. | t0-3 of ch 7
//
// As (token, channel) a lane makes delta and g, then as (channel, states) it runs the recurrence and leaves every h in shared memory, and
// as (token, channel) it adds up its y: all chains of the contract in one thread and in order, whatever lanes held the states. Wide has N /
// 4 times the threads of narrow and reads shared memory more often for each update, so the launcher takes it while narrow would leave the
// GPU half empty.
//
// Time. Both directions count steps: step s is token s forward, L - 1 - s backward. A tile is kTile steps of either; while a tile is
// scanned, the copies of the next one run:
//
//   step           0        kTile        2 kTile                                   L
//   forward        | tile 0 |   tile 1   | .. ------->  |  <----------- ..         |       first at a token: parks its y
//   backward       |        ..  <----------  |  -------> ..     | tile 1  | tile 0 |       second: adds the parked y, gates, rounds, stores
//   token          0                           (L-1)/2                          L - 1
//
// Before the middle every y is parked, behind it every token is finished, by both directions, so nothing waits. In the tile of the middle
// they meet: there a barrier stands in every part, and of a pair that arrives together the forward direction parks.
//
// Shared memory of a direction (float4 wherever the scan reads, a group being 4 steps):
//
//   Stage, twice   scalars [4][kTile]: decay, b_tok, c_tok, out_inv | rows [3][kTile][kChannels]: u, delta, gate | bc [kTile][2 N], as they
//   come b              [group][state][step % 4]        Bf: a lane reads a state's four steps at once c              [step][N + 4] Cf: a
//   lane reads a step's four states at once
// and of a warp:
//   delta, g       [32], lane as (token, channel)  so that a channel's four steps lie side by side
//   h              [32][N + 4], row = lane as (token, channel)
#include <cmath>
#include <cstdint>

#include "plugins/bidirectional_scan/kernel.h"
#include "plugins/common/cuda.h"
#include "plugins/common/numerics.h"

namespace vimtrt {
namespace {

constexpr int kWarpThreads = 32;
constexpr int kDirections = 2;
constexpr int kDirectionWarps = 2;
constexpr int kDirectionThreads = kDirectionWarps * kWarpThreads;
constexpr int kThreads = kDirections * kDirectionThreads;
constexpr int kGroup = 4;  // steps whose operands are read at once
constexpr size_t kMaxSharedBytes = 48 * 1024;
constexpr int64_t kMaxGridX = 2147483647;
constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

// From this many blocks on, narrow fills a GPU: two for each of an A100's 108 processors. README.md has the reckoning.
constexpr int64_t kManyBlocks = 216;

template <int States, int Lanes, int Tile>
struct Layout {
  static constexpr int kStates = States, kLanes = Lanes, kTile = Tile;
  static constexpr int kPerLane = States / Lanes;                    // states of a lane
  static constexpr int kWarpChannels = kWarpThreads / Lanes;         // channels of a warp
  static constexpr int kChannels = kDirectionWarps * kWarpChannels;  // of a block
  static constexpr bool kIsNarrow = Lanes == kGroup;
  static constexpr int kPart = Lanes;        // steps that a warp takes at a time
  static constexpr int kPitch = States + 4;  // floats from row to row: eight rows' float4 lie in different banks
  static_assert(kPart % kGroup == 0 && Tile % kPart == 0, "parts are whole groups, tiles whole parts");
};

template <int States>
using Wide = Layout<States, States, 32>;
template <int States>
using Narrow = Layout<States, 4, 16>;

// What the launcher adds to the operator's arguments. Widths are the bytes that can be copied at once: 16, 8, 4, or 1.
struct Launch {
  BidirectionalScanParams p;
  int64_t first_image = 0;
  int32_t groups = 0;  // of channels
  int32_t row_width = 1, bc_width = 1;
  float* workspace = nullptr;
};

enum Scalar { kDecay, kBTok, kCTok, kOutInv, kScalars };
enum Row { kU, kDelta, kGate, kRows };

template <class Shape>
struct alignas(16) Stage {
  float scalars[kScalars][Shape::kTile];
  int8_t rows[kRows][Shape::kTile][Shape::kChannels];
  int8_t bc[Shape::kTile][2 * Shape::kStates];
};

template <class Shape>
struct alignas(16) Direction {
  static constexpr int kGroupPitch = kGroup * Shape::kStates + 8;
  Stage<Shape> stages[2];
  float b[Shape::kTile / kGroup * kGroupPitch];
  float c[Shape::kTile][Shape::kPitch];
  float state_scales[2][Shape::kStates];  // of B, of C
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
  Warp<Shape> warps[kDirections * kDirectionWarps];
};

// The block's part of the work, as a thread of one direction sees it.
struct Place {
  int64_t image = 0;
  int first_channel = 0;
  int d = 0;       // direction
  int thread = 0;  // within the direction
  int warp = 0;    // within the direction
  int lane = 0;
};

// What a thread copies of every tile: units of a tile are dealt to the threads of the direction in turn, the same ones in every tile.
// Sources are those in the tile that comes next. Rows and scalars advance by a tile; a thread's words of B and C are the same word of steps
// at equal distances, so their one source advances from unit to unit.
template <class Shape>
struct TileCopies {
  static constexpr int kRowUnits = kRows * Shape::kTile;  // of a whole row
  static constexpr int kBcWords = 2 * Shape::kStates / 4, kBcUnits = Shape::kTile * kBcWords;
  static constexpr int kScalarUnits = kScalars * Shape::kTile;
  static constexpr int kRowTurns = (kRowUnits + kDirectionThreads - 1) / kDirectionThreads;
  static constexpr int kBcTurns = kBcUnits / kDirectionThreads, kBcTurnSteps = kDirectionThreads / kBcWords;
  static constexpr int kScalarTurns = kScalarUnits / kDirectionThreads;
  static_assert(kBcUnits % kDirectionThreads == 0 && kScalarUnits % kDirectionThreads == 0, "whole turns");
  const int8_t* rows[kRowTurns];
  int64_t row_advance[kRowTurns];
  const int8_t* bc;
  int64_t bc_advance;
  const float* scalars[kScalarTurns];
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
  float* parked;  // of the image's first token and the pair's channel
  int8_t* y;
  int parked_step, y_step;  // elements from token to token
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

// Adding 1.5 * 2^23 leaves no bits behind the point: the sum is rounded to the nearest even whole number, which its low bits hold.
constexpr float kWhole = 12582912.0f;

VIMTRT_DEVICE float clamped_s8(float x) { return fminf(fmaxf(x, -128.0f), 127.0f); }

// float(sat8(rne(x))). One instruction of the conversion unit, which is slow and otherwise idle half of the time, or two additions, which
// make the chain shorter. rintf may give -0 for 0; that changes no more than signs of zeros, and an output of int8 has none.
template <bool WithAdditions>
VIMTRT_DEVICE float rounded_s8(float x) {
  return WithAdditions ? (clamped_s8(x) + kWhole) - kWhole : rintf(clamped_s8(x));
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

// Copies

VIMTRT_DEVICE int limited(int count, int limit) { return count < 0 ? 0 : count < limit ? count : limit; }

// The first `bytes` bytes of `Size` and zeros behind them, `width` bytes at once.
template <int Size>
VIMTRT_DEVICE void copy_unit(int8_t* shared, const int8_t* global, int bytes, int width) {
  if (width >= Size) {
    cuda::copy_async<Size>(shared, global, bytes);
    return;
  }
#pragma unroll 1
  for (int byte = 0; byte < Size; byte += 4) {
    const int left = limited(bytes - byte, 4);
    if (width >= 4) {
      cuda::copy_async<4>(shared + byte, global + byte, left);
      continue;
    }
    uint32_t word = 0;
    for (int i = 0; i < 4; ++i) {
      if (i < left) word |= static_cast<uint32_t>(static_cast<uint8_t>(cuda::load(global + byte + i))) << (8 * i);
    }
    *reinterpret_cast<uint32_t*>(shared + byte) = word;
  }
}

template <class Shape>
VIMTRT_DEVICE TileCopies<Shape> make_copies(const BidirectionalScanParams& p, const Place& place) {
  using Copies = TileCopies<Shape>;
  Copies copies;
  const int d = place.d, sign = d == 0 ? 1 : -1, start = d == 0 ? 0 : p.tokens - 1;  // step s is token start + sign * s
  const int64_t image_row = place.image * p.tokens + start;
#pragma unroll
  for (int j = 0; j < Copies::kRowTurns; ++j) {
    const int unit = place.thread + j * kDirectionThreads, kind = unit / Shape::kTile, step = unit % Shape::kTile;
    const int8_t* base = kind == kU ? (d == 0 ? p.u[0] : p.u[1]) : kind == kDelta ? (d == 0 ? p.delta[0] : p.delta[1]) : p.gate;
    const int64_t stride = kind == kGate ? p.gate_stride : p.channels;
    copies.rows[j] = base + (image_row + sign * step) * stride + place.first_channel;
    copies.row_advance[j] = sign * Shape::kTile * stride;
  }
  const int bc_step = place.thread / Copies::kBcWords, bc_word = place.thread % Copies::kBcWords;
  copies.bc = (d == 0 ? p.bc[0] : p.bc[1]) + (image_row + sign * bc_step) * p.bc_stride + bc_word * 4;
  copies.bc_advance = sign * Copies::kBcTurnSteps * p.bc_stride;
#pragma unroll
  for (int j = 0; j < Copies::kScalarTurns; ++j) {
    const int unit = place.thread + j * kDirectionThreads, kind = unit / Shape::kTile, step = unit % Shape::kTile;
    const float* base = kind == kDecay ? p.decay_tok : kind == kBTok ? p.b_scale_tok : kind == kCTok ? p.c_scale_tok : p.out_inv_scale_tok;
    copies.scalars[j] = base + (kind == kOutInv ? 0 : static_cast<int64_t>(d) * p.tokens) + start + sign * step;
  }
  copies.scalar_advance = sign * Shape::kTile;
  return copies;
}

// Starts the thread's copies of the next tile, of which `steps` steps are left; zeros behind them. `row_bytes` are the bytes of a row that
// exist. What only the second at a token needs is left out of tiles without one.
template <class Shape>
VIMTRT_DEVICE void copy_tile(Stage<Shape>* to, TileCopies<Shape>& copies, const Launch& launch, int steps, int row_bytes, bool finishes,
                             int thread) {
  using Copies = TileCopies<Shape>;
#pragma unroll
  for (int j = 0; j < Copies::kRowTurns; ++j) {
    const int unit = thread + j * kDirectionThreads;
    if (unit < (finishes ? kRows : kGate) * Shape::kTile) {
      copy_unit<Shape::kChannels>(&to->rows[0][0][0] + unit * Shape::kChannels, copies.rows[j], unit % Shape::kTile < steps ? row_bytes : 0,
                                  launch.row_width);
    }
    copies.rows[j] += copies.row_advance[j];
  }
#pragma unroll
  for (int j = 0; j < Copies::kBcTurns; ++j) {
    const int unit = thread + j * kDirectionThreads;
    copy_unit<4>(&to->bc[0][0] + unit * 4, copies.bc, unit / Copies::kBcWords < steps ? 4 : 0, launch.bc_width);
    copies.bc += copies.bc_advance;
  }
#pragma unroll
  for (int j = 0; j < Copies::kScalarTurns; ++j) {
    const int unit = thread + j * kDirectionThreads;
    if (unit < (finishes ? kScalars : kOutInv) * Shape::kTile) {
      cuda::copy_async<4>(&to->scalars[0][0] + unit, copies.scalars[j], unit % Shape::kTile < steps ? 4 : 0);
    }
    copies.scalars[j] += copies.scalar_advance;
  }
}

// Where Bf of a state and step lies. Four words after every eight states keep narrow's lanes, four states apart, in different banks.
template <class Shape>
VIMTRT_DEVICE int b_at(int step, int state) {
  return step / kGroup * Direction<Shape>::kGroupPitch + state / 8 * 4 + state * kGroup + step % kGroup;
}

// Bf and Cf of a tile, shared by the channels of the block: four states of a step at a time.
template <class Shape>
VIMTRT_DEVICE void scale_bc(Direction<Shape>* direction, const Stage<Shape>& stage, int thread) {
  constexpr int kWords = Shape::kStates / 4, kItems = Shape::kTile * kWords;
#pragma unroll
  for (int which = 0; which < 2; ++which) {
#pragma unroll
    for (int first = 0; first < kItems; first += kDirectionThreads) {
      const int item = first + thread, step = item / kWords, state = item % kWords * 4;
      if (kItems % kDirectionThreads != 0 && item >= kItems) continue;
      const uint32_t word = *reinterpret_cast<const uint32_t*>(&stage.bc[step][which * Shape::kStates + state]);
      const float token_scale = stage.scalars[which == 0 ? kBTok : kCTok][step];
      float scaled[4];
      read4(scaled, &direction->state_scales[which][state]);
#pragma unroll
      for (int i = 0; i < 4; ++i) scaled[i] = (static_cast<float>(static_cast<int8_t>(word >> (8 * i))) * scaled[i]) * token_scale;
      if (which == 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) direction->b[b_at<Shape>(step, state) + i * kGroup] = scaled[i];
      } else {
        write(&direction->c[step][state], scaled);
      }
    }
  }
}

// The recurrence

// What a lane, as (channel, states), keeps of its states: A2, and a bound of |delta * A2| over the whole warp.
template <class Shape>
struct Decay {
  float a_log2[Shape::kPerLane];
  float reach;
};

// h = fma(a, state, b) of a group's steps.
template <class Shape>
struct Coefficients {
  float a[kGroup][Shape::kPerLane], b[kGroup][Shape::kPerLane];
};

template <class Shape, bool Clamps>
VIMTRT_DEVICE void make_decays(Coefficients<Shape>& to, const float (&delta)[kGroup], const float (&decay_tok)[kGroup],
                               const Decay<Shape>& decay) {
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
#pragma unroll
    for (int j = 0; j < Shape::kPerLane; ++j) {
      to.a[i][j] = exp2c_without_conversion<Clamps>(fmaf(delta[i], decay.a_log2[j], decay_tok[i]));
    }
  }
}

// Everything of a group that does not need the state. Where no exponent of the warp can come near the limits of exp2c, narrow leaves its clamps out;
// wide has too few updates in a group to ask.
template <class Shape>
VIMTRT_DEVICE void make_coefficients(Coefficients<Shape>& to, const Direction<Shape>& direction, const Stage<Shape>& stage,
                                     const Warp<Shape>& warp, const Decay<Shape>& decay, int first, int group, int lane) {
  const int pair = group * kGroup * Shape::kWarpChannels + lane / Shape::kLanes * kGroup;
  const int step = first + group * kGroup;
  float delta[kGroup], g[kGroup], decay_tok[kGroup];
  read4(delta, warp.delta + pair);
  read4(g, warp.g + pair);
  read4(decay_tok, stage.scalars[kDecay] + step);
#pragma unroll
  for (int j = 0; j < Shape::kPerLane; ++j) {
    float b[kGroup];
    read4(b, direction.b + b_at<Shape>(step, lane % Shape::kLanes * Shape::kPerLane + j));
#pragma unroll
    for (int i = 0; i < kGroup; ++i) to.b[i][j] = g[i] * b[i];
  }
  if constexpr (Shape::kIsNarrow) {
    const float most = fmaxf(fmaxf(fabsf(decay_tok[0]), fabsf(decay_tok[1])), fmaxf(fabsf(decay_tok[2]), fabsf(decay_tok[3])));
    if (most + decay.reach < kExp2Limit - 1.0f) {
      make_decays<Shape, false>(to, delta, decay_tok, decay);
      return;
    }
  }
  make_decays<Shape, true>(to, delta, decay_tok, decay);
}

template <class Shape, bool Int8State>
VIMTRT_DEVICE void advance(float (&state)[Shape::kPerLane], Warp<Shape>& warp, const Coefficients<Shape>& with, int group, int lane) {
  const int pair = group * kGroup * Shape::kWarpChannels + lane / Shape::kLanes * kGroup;
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    float h[Shape::kPerLane];
#pragma unroll
    for (int j = 0; j < Shape::kPerLane; ++j) {
      h[j] = fmaf(with.a[i][j], state[j], with.b[i][j]);
      state[j] = Int8State ? rounded_s8<!Shape::kIsNarrow>(h[j]) : h[j];
    }
    write(&warp.h[pair + i][lane % Shape::kLanes * Shape::kPerLane], h);
  }
}

// The first `steps` steps of a part, in groups. A group's coefficients are made while the state goes through the group before.
template <class Shape, bool Int8State>
VIMTRT_DEVICE void scan_groups(float (&state)[Shape::kPerLane], Warp<Shape>& warp, const Direction<Shape>& direction,
                               const Stage<Shape>& stage, const Decay<Shape>& decay, int first, int steps, int lane) {
  Coefficients<Shape> now;
  make_coefficients(now, direction, stage, warp, decay, first, 0, lane);
  if constexpr (!Shape::kIsNarrow) {
#pragma unroll
    for (int group = 1; group * kGroup < steps && group * kGroup < Shape::kPart; ++group) {
      Coefficients<Shape> next;
      make_coefficients(next, direction, stage, warp, decay, first, group, lane);
      advance<Shape, Int8State>(state, warp, now, group - 1, lane);
      now = next;
    }
    const int last = (limited(steps, Shape::kPart) - 1) / kGroup;
    advance<Shape, Int8State>(state, warp, now, last, lane);
  } else {
    advance<Shape, Int8State>(state, warp, now, 0, lane);
  }
}

// The pairs

// sum over the states of h * Cf, in the contract's order.
template <int States>
VIMTRT_DEVICE float sum_of_states(const float* h_row, const float* c_row) {
  float chain[States / 4];
#pragma unroll
  for (int j = 0; j < States / 4; ++j) {
    float h[4], c[4];
    read4(h, h_row + 4 * j);
    read4(c, c_row + 4 * j);
    chain[j] = h[0] * c[0];
    for (int i = 1; i < 4; ++i) chain[j] = fmaf(h[i], c[i], chain[j]);
  }
  if constexpr (States == 16) {
    return (chain[0] + chain[1]) + (chain[2] + chain[3]);
  } else {
    return chain[0] + chain[1];
  }
}

// A part: kPart steps, or the `steps` that are left. `first` is its first step within the tile, `tile_first` the tile's.
template <class Shape, bool Int8State>
VIMTRT_DEVICE void scan_part(float (&state)[Shape::kPerLane], Warp<Shape>& warp, const Direction<Shape>& direction,
                             const Stage<Shape>& stage, const Decay<Shape>& decay, const Pair& pair, const Merge& merge, int tokens, int d,
                             int tile_first, int first, int lane) {
  const int row = first + pair.step;
  const float u = static_cast<float>(stage.rows[kU][row][pair.channel]);
  const float delta = static_cast<float>(stage.rows[kDelta][row][pair.channel] + 128);
  warp.delta[lane] = delta;
  warp.g[lane] = (delta * u) * pair.input_scale;
  cuda::sync_warp();

  const int steps = tokens - tile_first - first;
  scan_groups<Shape, Int8State>(state, warp, direction, stage, decay, first, steps, lane);
  cuda::sync_warp();

  // Steps behind the last token leave h as it was; nothing of theirs is kept.
  const float y = fmaf(u, pair.skip_scale, sum_of_states<Shape::kStates>(warp.h[lane], direction.c[row]) * pair.y_scale);
  const int step = tile_first + row, mirrored = tokens - 1 - step;  // the other direction's step at this token
  const bool exists = pair.exists && mirrored >= 0;
  const unsigned part = static_cast<unsigned>(step) / Shape::kPart, other_part = static_cast<unsigned>(mirrored) / Shape::kPart;
  const bool parks = other_part > part || (other_part == part && d == 0);
  const int token = d == 0 ? step : mirrored;
  float* const parked = merge.parked + static_cast<int64_t>(token) * merge.parked_step;
  if (exists && parks) *parked = y;
  if (tile_first / Shape::kTile == (tokens - 1) / (2 * Shape::kTile)) cuda::sync_block();
  if (exists && !parks) {
    const float gate = static_cast<float>(stage.rows[kGate][row][pair.channel]);
    const float o = (*parked + y) * (gate * pair.gate_scale);
    merge.y[static_cast<int64_t>(token) * merge.y_step] =
        static_cast<int8_t>(to_bits(clamped_s8(o * stage.scalars[kOutInv][row]) + kWhole));
  }
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
#pragma unroll
  for (int mask = kWarpThreads / 2; mask > 0; mask /= 2) decay.reach = fmaxf(decay.reach, cuda::shuffle_xor(decay.reach, mask));
  return decay;
}

template <class Shape>
VIMTRT_DEVICE Merge make_merge(const Launch& launch, float* shared, const Place& place, const Pair& pair) {
  const int64_t first = place.image * launch.p.tokens * launch.p.channels + place.first_channel + pair.channel;
  Merge m;
  m.parked = launch.workspace != nullptr ? launch.workspace + first : shared + pair.channel;
  m.parked_step = launch.workspace != nullptr ? launch.p.channels : Shape::kChannels;
  m.y = launch.p.y + first;
  m.y_step = launch.p.channels;
  return m;
}

template <class Shape, bool Int8State>
VIMTRT_KERNEL void bidirectional_scan_kernel(Launch launch) {
  const BidirectionalScanParams& p = launch.p;
  Shared<Shape>* const shared = cuda::dynamic_shared<Shared<Shape>>();
  const int warp_of_block = static_cast<int>(cuda::thread_x()) / kWarpThreads;
  Place place;
  place.image = launch.first_image + cuda::block_x() / static_cast<unsigned>(launch.groups);
  place.first_channel = static_cast<int>(cuda::block_x() % static_cast<unsigned>(launch.groups)) * Shape::kChannels;
  place.d = warp_of_block / kDirectionWarps;
  place.thread = static_cast<int>(cuda::thread_x()) % kDirectionThreads;
  place.warp = warp_of_block % kDirectionWarps;
  place.lane = static_cast<int>(cuda::thread_x()) % kWarpThreads;
  const int middle = (p.tokens - 1) / (2 * Shape::kTile), row_bytes = limited(p.channels - place.first_channel, Shape::kChannels);

  Direction<Shape>& direction = shared->directions[place.d];
  TileCopies<Shape> copies = make_copies<Shape>(p, place);
  copy_tile(&direction.stages[0], copies, launch, p.tokens, row_bytes, middle == 0, place.thread);
  cuda::commit_copies();

  if (place.thread < 2 * Shape::kStates) {
    const float* from = place.thread < Shape::kStates ? p.b_scale_state : p.c_scale_state;
    (&direction.state_scales[0][0])[place.thread] = cuda::load(from + place.d * Shape::kStates + place.thread % Shape::kStates);
  }
  const Pair pair = make_pair<Shape>(p, place);
  const Merge merge = make_merge<Shape>(launch, reinterpret_cast<float*>(shared + 1), place, pair);
  const Decay<Shape> decay = make_decay<Shape>(p, place);
  float state[Shape::kPerLane] = {};
#pragma unroll 1
  for (int first = 0, tile = 0; first < p.tokens; first += Shape::kTile, ++tile) {
    const Stage<Shape>& stage = direction.stages[tile % 2];
    const int left = p.tokens - first;
    cuda::wait_copies<0>();
    cuda::sync_block();  // the tile is there, and no one reads the previous one any more
    if (left > Shape::kTile) {
      copy_tile(&direction.stages[(tile + 1) % 2], copies, launch, left - Shape::kTile, row_bytes, tile + 1 >= middle, place.thread);
      cuda::commit_copies();
    }
    scale_bc(&direction, stage, place.thread);
    cuda::sync_block();
#pragma unroll 1
    for (int part = 0; part < Shape::kTile && part < left; part += Shape::kPart) {
      scan_part<Shape, Int8State>(state, shared->warps[warp_of_block], direction, stage, decay, pair, merge, p.tokens, place.d, first, part,
                                  place.lane);
    }
  }
}

// The launch

int64_t groups_of(const BidirectionalScanParams& p, int channels) { return (static_cast<int64_t>(p.channels) - 1) / channels + 1; }

template <int States>
bool is_narrow(const BidirectionalScanParams& p) {
  return p.batch >= (kManyBlocks - 1) / groups_of(p, Narrow<States>::kChannels) + 1;
}

template <class Shape>
size_t shared_bytes(const BidirectionalScanParams& p, bool with_workspace) {
  return sizeof(Shared<Shape>) + (with_workspace ? 0 : sizeof(float) * Shape::kChannels * p.tokens);
}

template <class Shape>
size_t workspace_bytes(const BidirectionalScanParams& p) {
  return shared_bytes<Shape>(p, false) <= kMaxSharedBytes ? 0 : sizeof(float) * p.batch * p.tokens * p.channels;
}

uint64_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

// The largest of 16, 8, 4 that divides everything that is or-ed into `bits`; otherwise 1.
int width_of(uint64_t bits) { return bits % 16 == 0 ? 16 : bits % 8 == 0 ? 8 : bits % 4 == 0 ? 4 : 1; }

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

  const auto kernel = p.state_int8 ? bidirectional_scan_kernel<Shape, true> : bidirectional_scan_kernel<Shape, false>;
  const int64_t images_at_once = kMaxGridX / launch.groups;
  for (; launch.first_image < p.batch; launch.first_image += images_at_once) {
    const int64_t left = p.batch - launch.first_image, images = left < images_at_once ? left : images_at_once;
    const cuda::Grid grid{static_cast<unsigned>(images * launch.groups)};
    const int status = cuda::launch(kernel, grid, kThreads, shared_bytes<Shape>(p, with_workspace), stream, launch);
    if (status != 0) return status;
  }
  return 0;
}

}  // namespace

size_t bidirectional_scan_workspace_bytes(const BidirectionalScanParams& p) {
  if (p.states == 16) return is_narrow<16>(p) ? workspace_bytes<Narrow<16>>(p) : workspace_bytes<Wide<16>>(p);
  return is_narrow<8>(p) ? workspace_bytes<Narrow<8>>(p) : workspace_bytes<Wide<8>>(p);
}

int bidirectional_scan_launch(const BidirectionalScanParams& p, cuda::Stream stream, void* workspace) {
  if (p.batch == 0) return 0;
  if (p.states == 16)
    return is_narrow<16>(p) ? launch_layout<Narrow<16>>(p, stream, workspace) : launch_layout<Wide<16>>(p, stream, workspace);
  return is_narrow<8>(p) ? launch_layout<Narrow<8>>(p, stream, workspace) : launch_layout<Wide<8>>(p, stream, workspace);
}

}  // namespace vimtrt
