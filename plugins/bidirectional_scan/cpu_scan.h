// The recurrence on vector units (docs/numerics.md). Registers hold the states of one channel, so that B, C and the
// rows of the decay's tables are plain loads. `Vectors` is an instruction set's (cpu_driver.h), and `Vectors::Rows<N>`
// its registers of states:
//
//   Row, kWidth                             a register, and how many states it holds: N or fewer
//   zero(), load(source), load_s8(source), broadcast(source), store(target, row)
//   multiply(a, b), fma(a, b, c), held(a)   held: 2^-60 at least
//   quantized(a)                            sat8(rne(a)) as floats
//
// Internal linkage, as in threads.h.
#pragma once

#include <cstddef>

#include "plugins/bidirectional_scan/cpu.h"
#include "plugins/bidirectional_scan/decay.h"
#include "plugins/common/unroll.h"

namespace vimtrt {
namespace {

// The decay of delta is high[delta / 16] * low[delta % 16].
template <int N>
struct DecayTables {
  float high[kDecayPowers][N];
  float low[kDecayPowers][N];
};

// What the channels of a block take of a token. `high` is 16 times a row of the high table and `low` 8 times one of the
// low table, so that addressing modes make the offsets.
template <int kChannels>
struct TokenDrive {
  alignas(64) float g[kChannels];
  alignas(16) uint8_t high[kChannels];
  alignas(16) uint8_t low[kChannels];
};

// Step s of a direction is token s forward, L - 1 - s backward.
struct Steps {
  int begin, end;
};

inline int token_of(const BidirectionalScanParams& p, int d, int step) { return d == 0 ? step : p.tokens - 1 - step; }

template <class Instructions, int kStates, bool kStateInt8>
struct Scan {
  using Vectors = Instructions;
  using Vector = typename Vectors::Vector;
  using Rows = typename Vectors::template Rows<kStates>;
  using Row = typename Rows::Row;
  static constexpr int N = kStates, kLanes = Vectors::kLanes, kWidth = Rows::kWidth, kParts = N / kWidth;
  static constexpr int kDirectionRows = bidirectional_scan_direction_rows(N);
  static constexpr int kAhead = 16;  // tokens: their rows may be in another processor's cache
  struct alignas(64) Tables {
    DecayTables<N> of[kLanes];
  };
  struct alignas(64) State {  // h, or hq as a float, of a block
    float of[kLanes * N];
  };

  // Bf and Cf of some steps of an image's direction: Bf[0..N-1], Cf[0..N-1] of each. Not inlined: it runs once for
  // many channels.
  [[gnu::noinline]] static void scale_bc(const BidirectionalScanParams& p, int d, int64_t image, Steps steps,
                                         float* bc) {
    const Row least = Rows::broadcast(&kLeastDrive);
    const float* b_tok = p.b_scale_tok + static_cast<int64_t>(d) * p.tokens;
    const float* c_tok = p.c_scale_tok + static_cast<int64_t>(d) * p.tokens;
    for (int step = steps.begin; step < steps.end; ++step, bc += 2 * N) {
      const int t = token_of(p, d, step);
      const int8_t* source = p.bc[d] + (image * p.tokens + t) * p.bc_stride;
      for (int n = 0; n < N; n += kWidth) {
        const Row b = Rows::multiply(Rows::load_s8(source + n), Rows::load(p.b_scale_state + d * N + n));
        const Row c = Rows::multiply(Rows::load_s8(source + N + n), Rows::load(p.c_scale_state + d * N + n));
        Rows::store(bc + n, Rows::fma(b, Rows::broadcast(b_tok + t), least));
        Rows::store(bc + N + n, Rows::multiply(c, Rows::broadcast(c_tok + t)));
      }
    }
  }

  // A table of base^k, as decay_powers; `base` is held above 2^-60.
  static void fill(const float* base, float (&powers)[kDecayPowers][N]) {
    constexpr float kOne = 1.0f;
    for (int n = 0; n < N; n += kWidth) {
      const Row power = Rows::load(base + n), square = Rows::held(Rows::multiply(power, power));
      Row even = Rows::broadcast(&kOne), odd = power;
      for (int k = 0; k < kDecayPowers; k += 2) {
        Rows::store(&powers[k][n], even);
        Rows::store(&powers[k + 1][n], odd);
        even = Rows::held(Rows::multiply(even, square));
        odd = Rows::held(Rows::multiply(odd, square));
      }
    }
  }

  // The tables of a block of channels.
  static void fill(const float* packed, Tables& tables) {
    for (int lane = 0; lane < kLanes; ++lane) {
      fill(packed + lane * N, tables.of[lane].high);
      fill(packed + (kLanes + lane) * N, tables.of[lane].low);
    }
  }

  // Some steps of a block of channels; calls sink(t, y) once per token, in the direction's order. `saved` is the state
  // between one call and the next.
  template <class Sink>
  static void scan_block(const BidirectionalScanParams& p, int d, int64_t image, int first_channel,
                         typename Vectors::Lanes lanes, const float* packed, Steps steps, const float* bc,
                         const Tables& tables, State& saved, const Sink& sink) {
    packed += 2 * N * kLanes;
    const Vector input_scale = Vectors::load(packed), y_scale = Vectors::load(packed + kLanes),
                 skip_scale = Vectors::load(packed + 2 * kLanes);
    const int L = p.tokens;
    const int64_t E = p.channels;
    const int8_t* u_base = p.u[d] + image * L * E + first_channel;
    const int8_t* delta_base = p.delta[d] + image * L * E + first_channel;
    const float* decay_tok = p.decay_tok + static_cast<int64_t>(d) * L;
    const auto drive_of = [&](int t, TokenDrive<kLanes>& drive) VIMTRT_ALWAYS_INLINE {
      const Vector u = Vectors::as_floats(Vectors::load_bytes(u_base + t * E, lanes));
      const auto delta = Vectors::unsigned_bytes(Vectors::load_bytes(delta_base + t * E, lanes));
      Vectors::store_halves(delta, drive.high, drive.low);
      const Vector driven = Vectors::multiply(Vectors::unsigned_as_floats(delta), u);
      Vectors::store(drive.g, Vectors::fma(driven, input_scale, Vectors::broadcast(kLeastDrive)));
      asm("" : "+m"(drive));  // or the compiler takes numbers out of registers one by one, which loads do for nothing
      return u;
    };
    TokenDrive<kLanes> drives[2];  // of this token and of the next, so that none waits for what it was just stored
    Vector next_u = drive_of(token_of(p, d, steps.begin), drives[steps.begin % 2]);
    Row state[kLanes * kParts];
    unroll<kLanes * kParts>([&](auto i) VIMTRT_ALWAYS_INLINE {
      state[i] = steps.begin == 0 ? Rows::zero() : Rows::load(saved.of + kWidth * i);
    });
    for (int step = steps.begin; step < steps.end; ++step) {
      const int t = token_of(p, d, step);
      const Vector u = next_u;
      next_u = drive_of(token_of(p, d, step + 1 < L ? step + 1 : step), drives[(step + 1) % 2]);
      const int64_t ahead = static_cast<int64_t>(token_of(p, d, step + kAhead < L ? step + kAhead : step)) * E;
      Vectors::prefetch(u_base + ahead);
      Vectors::prefetch(delta_base + ahead);
      const TokenDrive<kLanes>* now = &drives[step % 2];
      asm("" : "+r"(now));
      const TokenDrive<kLanes>& drive = *now;
      const float* b = bc + static_cast<int64_t>(step - steps.begin) * (2 * N);
      // Opaque bases in the middle of eight channels' rows each, so that displacements are short: the compiler would
      // keep an address for each channel, in memory.
      constexpr int kBaseChannels = 8;
      constexpr size_t kBaseBytes = kBaseChannels * sizeof(DecayTables<N>);
      const char* bases[(kLanes + kBaseChannels - 1) / kBaseChannels];
      unroll<(kLanes + kBaseChannels - 1) / kBaseChannels>([&](auto i) VIMTRT_ALWAYS_INLINE {
        bases[i] = reinterpret_cast<const char*>(&tables) + i * kBaseBytes + kBaseBytes / 2;
        asm("" : "+r"(bases[i]));
      });
      // One register of one channel's states; returns h before it is rounded.
      const auto update = [&](auto channel, auto part) VIMTRT_ALWAYS_INLINE {
        constexpr int kFirst = part * kWidth;
        constexpr ptrdiff_t kOffset =
            static_cast<ptrdiff_t>(channel % kBaseChannels * sizeof(DecayTables<N>) + kFirst * sizeof(float)) -
            static_cast<ptrdiff_t>(kBaseBytes / 2);
        const char* base = bases[channel / kBaseChannels];
        const char* high = base + kOffset + offsetof(DecayTables<N>, high) + size_t{drive.high[channel]} * (N / 4);
        const char* low = base + kOffset + offsetof(DecayTables<N>, low) + size_t{drive.low[channel]} * (N / 2);
        Row a = Rows::multiply(Rows::load(reinterpret_cast<const float*>(high)),
                               Rows::load(reinterpret_cast<const float*>(low)));
        if constexpr (kStateInt8) a = Rows::multiply(a, Rows::broadcast(decay_tok + t));
        const Row driven = Rows::multiply(Rows::load(b + kFirst), Rows::broadcast(drive.g + channel));
        Row& kept = state[channel * kParts + part];
        const Row h = Rows::fma(a, kept, driven);
        kept = kStateInt8 ? Rows::quantized(h) : h;
        return h;
      };
      const Vector sum = Vectors::template sums<N>(update, b + N);
      sink(t, Vectors::fma(u, skip_scale, Vectors::multiply(sum, y_scale)));
    }
    unroll<kLanes * kParts>([&](auto i) VIMTRT_ALWAYS_INLINE { Rows::store(saved.of + kWidth * i, state[i]); });
  }
};

}  // namespace
}  // namespace vimtrt
