// What the vector kernels of BidirectionalScan share: the order of work. `Vectors` is an instruction set's, in an
// unnamed namespace of its file:
//
//   kLanes, Vector, Lanes (what says which lanes there are)
//   lanes(left)
//   load(source), store(target, v), broadcast(x), add(a, b), multiply(a, b)
//   load_s8(source, lanes), store_quantized(target, lanes, v), prefetch(address)
//   scale_bc<N>(p, image, bcf)                     Bf and Cf of one image: bcf[d][t] = Bf[t, 0..N-1], Cf[t, 0..N-1]
//   scan_tokens<N, kStateInt8, kBounded>(p, d, image, first_channel, lanes, packed, bcf, sink)
//                                                  one direction of a block of channels; calls sink(t, y) once per
//                                                  token, in the direction's order
//
// Internal linkage, as in threads.h.
#pragma once

#include "plugins/bidirectional_scan/cpu.h"
#include "plugins/common/threads.h"

namespace vimtrt {
namespace {

// scale_bc in plain C++, for a `Vectors` to inherit. Not inlined: it runs once an image.
struct PlainScaleBc {
  template <int N>
  [[gnu::noinline]] static void scale_bc(const BidirectionalScanParams& p, int64_t image, float* bcf) {
    for (int d = 0; d < 2; ++d) {
      for (int t = 0; t < p.tokens; ++t, bcf += 2 * N) {
        const int8_t* bc = p.bc[d] + (image * p.tokens + t) * p.bc_stride;
        const float b_tok = p.b_scale_tok[static_cast<int64_t>(d) * p.tokens + t];
        const float c_tok = p.c_scale_tok[static_cast<int64_t>(d) * p.tokens + t];
        for (int n = 0; n < N; ++n) bcf[n] = (static_cast<float>(bc[n]) * p.b_scale_state[d * N + n]) * b_tok;
        for (int n = 0; n < N; ++n) bcf[N + n] = (static_cast<float>(bc[N + n]) * p.c_scale_state[d * N + n]) * c_tok;
      }
    }
  }
};

template <class Vectors, int N, bool kStateInt8, class Sink>
inline void scan_block(const BidirectionalScanParams& p, int d, int64_t image, int first_channel,
                       typename Vectors::Lanes lanes, const float* packed, const float* bcf, const Sink& sink) {
  if (packed[(N + 3) * Vectors::kLanes] != 0.0f) {
    Vectors::template scan_tokens<N, kStateInt8, true>(p, d, image, first_channel, lanes, packed, bcf, sink);
  } else {
    Vectors::template scan_tokens<N, kStateInt8, false>(p, d, image, first_channel, lanes, packed, bcf, sink);
  }
}

template <class Vectors, int N, bool kStateInt8>
void run_items(const BidirectionalScanParams& p, const float* packed, float* scratch, Pieces<RangeCut>& pieces) {
  using Vector = typename Vectors::Vector;
  constexpr int kLanes = Vectors::kLanes, kDirection = bidirectional_scan_direction_rows(N) * kLanes;
  constexpr int kAhead = 16;  // tokens: their rows may be in another processor's cache
  const int64_t L = p.tokens, E = p.channels;
  const int64_t blocks = (E + kLanes - 1) / kLanes;
  float* bcf = scratch;
  float* y_forward = scratch + L * (2 * 2 * N);
  int64_t scaled_image = -1;
  for (WorkRange range; pieces.next(range);) {
    const int64_t item = range.begin, image = item / blocks;
    const int first_channel = static_cast<int>(item % blocks) * kLanes;
    if (image != scaled_image) {
      Vectors::template scale_bc<N>(p, image, bcf);
      scaled_image = image;
    }
    const typename Vectors::Lanes lanes = Vectors::lanes(E - first_channel);
    const float* block = packed + (item % blocks) * kLanes * bidirectional_scan_block_rows(N);
    scan_block<Vectors, N, kStateInt8>(p, 0, image, first_channel, lanes, block, bcf, [&](int t, Vector y) {
      Vectors::store(y_forward + static_cast<int64_t>(t) * kLanes, y);
    });

    const int8_t* gate = p.gate + image * L * p.gate_stride + first_channel;
    int8_t* out = p.y + image * L * E + first_channel;
    const Vector gate_scale = Vectors::load(block + 2 * kDirection);
    scan_block<Vectors, N, kStateInt8>(
        p, 1, image, first_channel, lanes, block + kDirection, bcf + L * (2 * N), [&](int t, Vector y) {
          const int64_t ahead = t >= kAhead ? t - kAhead : t;
          Vectors::prefetch(gate + ahead * p.gate_stride);
          Vectors::prefetch(out + ahead * E);
          const Vector y_both = Vectors::add(Vectors::load(y_forward + static_cast<int64_t>(t) * kLanes), y);
          const Vector gates = Vectors::multiply(Vectors::load_s8(gate + t * p.gate_stride, lanes), gate_scale);
          const Vector o = Vectors::multiply(y_both, gates);
          Vectors::store_quantized(out + t * E, lanes,
                                   Vectors::multiply(o, Vectors::broadcast(p.out_inv_scale_tok[t])));
        });
  }
}

template <class Vectors>
size_t packed_bytes(const BidirectionalScanParams& p) {
  return bidirectional_scan_packed_bytes(p, Vectors::kLanes);
}

template <class Vectors>
void pack(const BidirectionalScanParams& p, void* packed) {
  bidirectional_scan_pack(p, Vectors::kLanes, static_cast<float*>(packed));
}

template <class Vectors>
size_t scratch_bytes(const BidirectionalScanParams& p, int threads) {
  return bidirectional_scan_worker_scratch_bytes(p, Vectors::kLanes) * static_cast<size_t>(threads);
}

template <class Vectors>
void run(const BidirectionalScanParams& p, const void* packed, void* scratch, int threads) {
  const auto items = p.states == 16 ? (p.state_int8 ? run_items<Vectors, 16, true> : run_items<Vectors, 16, false>)
                                    : (p.state_int8 ? run_items<Vectors, 8, true> : run_items<Vectors, 8, false>);
  const size_t worker_bytes = bidirectional_scan_worker_scratch_bytes(p, Vectors::kLanes);
  const int64_t blocks = (static_cast<int64_t>(p.channels) + Vectors::kLanes - 1) / Vectors::kLanes;
  run_workers(threads, RangeCut(p.batch * blocks, 1), [&](int worker, auto& pieces) {
    items(p, static_cast<const float*>(packed),
          reinterpret_cast<float*>(static_cast<char*>(scratch) + worker * worker_bytes), pieces);
  });
}

template <class Vectors>
constexpr CpuKernels<BidirectionalScanParams> kScanKernels = {packed_bytes<Vectors>, pack<Vectors>,
                                                              scratch_bytes<Vectors>, run<Vectors>};

}  // namespace
}  // namespace vimtrt
