// The int16 state on vector units (docs/numerics.md): a register holds all states of one channel, or of several, so
// that B, C and the rows of the decay's tables are plain loads. `Vectors::Int16` is an instruction set's. It has, of N
// states:
//
//   Row<N>                                  a register, or what stands for one; of kChannels<N> channels
//   zero<N>(), twice<N>(states)             twice: the same states for each of the row's channels
//   rows<N>(tables, offsets)                each channel's row of a table; a register's channels are as far apart in
//                                           the block as there are registers
//   numbers<N>(g)                           each channel's number, in all of its states; g holds each number twice
//   multiply(x, y)                          x y / 2^15, rounded half up
//   subtract(x, y), times_sixteen(x)        saturating
//   select(mask, x, y)                      x where the mask's bits are set, y elsewhere
//   dot(h, c)                               products, neighbours added, in 32 bits
//   sums<N>(dots)                           a block's sums over states, as floats; dots(row) gives them
//   scaled<N>(source, scales, target)       rne of N int8 times their scales, within 32767 of zero
//   powers<N>(base, is_low, target)         a table of 16 rows
//   drive<N>(u, delta, input_scale, b_tok, first_rows, drive)      what channels take of a token
//
// Internal linkage, as in threads.h.
#pragma once

#include <type_traits>

#include "plugins/bidirectional_scan/cpu.h"
#include "plugins/bidirectional_scan/int16.h"
#include "plugins/common/unroll.h"

namespace vimtrt {
namespace {

// The decay's tables of a block of channels: minus the decay of delta is high[delta / 16] * low[delta % 16].
template <int kChannels, int N>
struct DecayTables {
  alignas(64) int16_t rows[kChannels][2][kInt16Powers][N];
};

// What the channels of a block take of a token, in the order of channels.
template <int kChannels>
struct TokenDrive {
  alignas(64) uint32_t g[kChannels];     // twice in each: a broadcast of 32 bits needs no shuffle
  alignas(64) uint16_t high[kChannels];  // the rows' offsets into the tables, in bytes
  alignas(64) uint16_t low[kChannels];
  uint32_t is_large;  // a bit for each channel whose g counts sixteen times
};

template <class Instructions, int kStates>
struct Int16Scan {
  using Vectors = Instructions;
  using Int16 = typename Vectors::Int16;
  using Vector = typename Vectors::Vector;
  static constexpr int N = kStates, kLanes = Vectors::kLanes;
  static constexpr int kDirectionRows = bidirectional_scan_direction_rows(N, ScanState::kInt16);
  using Scaled = int16_t;
  using Tables = DecayTables<kLanes, N>;

  // bc[d][t] = B[t, 0..N-1], C[t, 0..N-1] of one image.
  static void scale_bc(const BidirectionalScanParams& p, int64_t image, int16_t* bc) {
    for (int d = 0; d < 2; ++d) {
      for (int t = 0; t < p.tokens; ++t, bc += 2 * N) {
        const int8_t* source = p.bc[d] + (image * p.tokens + t) * p.bc_stride;
        Int16::template scaled<N>(source, p.b_scale_state + d * N, bc);
        Int16::template scaled<N>(source + N, p.c_scale_state + d * N, bc + N);
      }
    }
  }

  // packed: base of the high and of the low table, [lane][N] each.
  static void fill(const float* packed, Tables& tables) {
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int half = 0; half < 2; ++half)
        Int16::template powers<N>(packed + (half * kLanes + lane) * N, half == 1, &tables.rows[lane][half][0][0]);
    }
  }

  template <class Sink>
  static void scan_block(const BidirectionalScanParams& p, int d, int64_t image, int first_channel,
                         typename Vectors::Lanes lanes, const float* packed, const int16_t* bc, Tables* tables,
                         const Sink& sink) {
    using Row = typename Int16::template Row<N>;
    fill(packed, *tables);
    packed += 2 * N * kLanes;
    const Vector input_scale = Vectors::load(packed), y_scale = Vectors::load(packed + kLanes),
                 skip_scale = Vectors::load(packed + 2 * kLanes);
    const int L = p.tokens;
    const int64_t E = p.channels;
    const int8_t* u_base = p.u[d] + image * L * E + first_channel;
    const int8_t* delta_base = p.delta[d] + image * L * E + first_channel;
    const float* b_tok = p.b_scale_tok + static_cast<int64_t>(d) * L;
    const float* c_tok = p.c_scale_tok + static_cast<int64_t>(d) * L;
    const char* const start = reinterpret_cast<const char*>(tables);
    alignas(64) uint16_t first_rows[kLanes];  // of the channels' high tables
    for (int lane = 0; lane < kLanes; ++lane) first_rows[lane] = static_cast<uint16_t>(lane * sizeof tables->rows[0]);
    static_assert(sizeof(Tables) <= UINT16_MAX, "rows' offsets have 16 bits");
    const auto token = [&](int step) VIMTRT_ALWAYS_INLINE { return d == 0 ? step : L - 1 - step; };
    const auto drive_of = [&](int t, TokenDrive<kLanes>& drive) VIMTRT_ALWAYS_INLINE {
      const Vector u = Vectors::load_s8(u_base + t * E, lanes);
      Int16::template drive<N>(u, Vectors::load_delta(delta_base + t * E, lanes), input_scale,
                               Vectors::broadcast(b_tok[t]), first_rows, drive);
      asm("" : "+m"(drive));  // or the compiler takes numbers out of registers one by one, which loads do for nothing
      return u;
    };
    TokenDrive<kLanes> drives[2];  // of this token and of the next, so that none waits for what it was just stored
    Vector next_u = drive_of(token(0), drives[0]);
    constexpr int kRows = kLanes / Int16::template kChannels<N>;
    Row h[kRows];
    unroll<kRows>([&](auto row) VIMTRT_ALWAYS_INLINE { h[row] = Int16::template zero<N>(); });
    for (int step = 0; step < L; ++step) {
      const int t = token(step);
      const Vector u = next_u;
      next_u = drive_of(token(step + 1 < L ? step + 1 : step), drives[(step + 1) % 2]);
      const TokenDrive<kLanes>& drive = drives[step % 2];
      const int16_t* scaled = bc + static_cast<int64_t>(t) * (2 * N);
      const Row b = Int16::template twice<N>(scaled), c = Int16::template twice<N>(scaled + N);
      const auto sums = [&](auto some_are_large) VIMTRT_ALWAYS_INLINE {
        alignas(64) uint32_t large[kLanes];
        if constexpr (some_are_large) {
          for (int lane = 0; lane < kLanes; ++lane) large[lane] = (drive.is_large >> lane & 1) != 0 ? ~0u : 0u;
        }
        return Int16::template sums<N>([&](auto row) VIMTRT_ALWAYS_INLINE {
          Row driven = Int16::multiply(b, Int16::template numbers<N>(drive.g + row));
          if constexpr (some_are_large)
            driven = Int16::select(Int16::template numbers<N>(large + row), Int16::times_sixteen(driven), driven);
          const Row decay = Int16::multiply(Int16::template rows<N>(start, drive.high + row),
                                            Int16::template rows<N>(start, drive.low + row));
          h[row] = Int16::subtract(driven, Int16::multiply(h[row], decay));
          return Int16::dot(h[row], c);
        });
      };
      const Vector sum = drive.is_large == 0 ? sums(std::false_type()) : sums(std::true_type());
      const Vector y = Vectors::multiply(Vectors::multiply(sum, y_scale), Vectors::broadcast(c_tok[t]));
      sink(t, Vectors::fma(u, skip_scale, y));
    }
  }
};

}  // namespace
}  // namespace vimtrt
