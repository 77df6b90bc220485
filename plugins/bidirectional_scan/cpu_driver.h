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
//   load_delta(source, lanes), fma(a, b, c), Int16 what the int16 state takes besides (cpu_int16.h)
//
// Internal linkage, as in threads.h.
#pragma once

#include "plugins/bidirectional_scan/cpu.h"
#include "plugins/bidirectional_scan/cpu_int16.h"
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

// The scan of states "int8" and "fp32".
template <class Instructions, int kStates, bool kStateInt8>
struct FloatScan {
  using Vectors = Instructions;
  static constexpr int N = kStates;
  static constexpr int kDirectionRows = bidirectional_scan_direction_rows(N, ScanState::kInt8);
  using Scaled = float;  // B and C
  struct Tables {};

  static void scale_bc(const BidirectionalScanParams& p, int64_t image, float* bc) {
    Vectors::template scale_bc<N>(p, image, bc);
  }
  template <class Sink>
  static void scan_block(const BidirectionalScanParams& p, int d, int64_t image, int first_channel,
                         typename Vectors::Lanes lanes, const float* packed, const float* bc, Tables*,
                         const Sink& sink) {
    if (packed[(N + 3) * Vectors::kLanes] != 0.0f) {
      Vectors::template scan_tokens<N, kStateInt8, true>(p, d, image, first_channel, lanes, packed, bc, sink);
    } else {
      Vectors::template scan_tokens<N, kStateInt8, false>(p, d, image, first_channel, lanes, packed, bc, sink);
    }
  }
};

// A worker's scratch: B and C of both directions of an image, scaled; y of the forward direction; tables.
template <class Scan>
struct ScanScratch {
  typename Scan::Scaled* bc;
  float* y_forward;
  typename Scan::Tables* tables;

  ScanScratch(const BidirectionalScanParams& p, char* start) {
    const auto take = [&](size_t bytes) {
      char* const taken = start;
      start += (bytes + 63) / 64 * 64;
      return taken;
    };
    const size_t L = static_cast<size_t>(p.tokens);
    char* const first = start;
    bc = reinterpret_cast<typename Scan::Scaled*>(take(L * 2 * 2 * Scan::N * sizeof *bc));
    y_forward = reinterpret_cast<float*>(take(L * Scan::Vectors::kLanes * sizeof *y_forward));
    tables = reinterpret_cast<typename Scan::Tables*>(take(sizeof *tables));
    bytes = static_cast<size_t>(start - first);
  }
  size_t bytes;
};

template <class Scan>
size_t worker_scratch_bytes(const BidirectionalScanParams& p) {
  alignas(64) static char nowhere;
  return ScanScratch<Scan>(p, &nowhere).bytes;
}

template <class Scan>
void run_items(const BidirectionalScanParams& p, const float* packed, char* scratch_start, Pieces<RangeCut>& pieces) {
  using Vectors = typename Scan::Vectors;
  using Vector = typename Vectors::Vector;
  constexpr int N = Scan::N, kLanes = Vectors::kLanes, kDirection = Scan::kDirectionRows * kLanes;
  constexpr int kAhead = 16;  // tokens: their rows may be in another processor's cache
  const int64_t L = p.tokens, E = p.channels;
  const int64_t blocks = (E + kLanes - 1) / kLanes;
  const ScanScratch<Scan> scratch(p, scratch_start);
  int64_t scaled_image = -1;
  for (WorkRange range; pieces.next(range);) {
    const int64_t item = range.begin, image = item / blocks;
    const int first_channel = static_cast<int>(item % blocks) * kLanes;
    if (image != scaled_image) {
      Scan::scale_bc(p, image, scratch.bc);
      scaled_image = image;
    }
    const typename Vectors::Lanes lanes = Vectors::lanes(E - first_channel);
    const float* block = packed + (item % blocks) * (2 * kDirection + kLanes);
    Scan::scan_block(p, 0, image, first_channel, lanes, block, scratch.bc, scratch.tables,
                     [&](int t, Vector y) { Vectors::store(scratch.y_forward + static_cast<int64_t>(t) * kLanes, y); });

    const int8_t* gate = p.gate + image * L * p.gate_stride + first_channel;
    int8_t* out = p.y + image * L * E + first_channel;
    const Vector gate_scale = Vectors::load(block + 2 * kDirection);
    Scan::scan_block(
        p, 1, image, first_channel, lanes, block + kDirection, scratch.bc + L * (2 * N), scratch.tables,
        [&](int t, Vector y) {
          const int64_t ahead = t >= kAhead ? t - kAhead : t;
          Vectors::prefetch(gate + ahead * p.gate_stride);
          Vectors::prefetch(out + ahead * E);
          const Vector y_both = Vectors::add(Vectors::load(scratch.y_forward + static_cast<int64_t>(t) * kLanes), y);
          const Vector gates = Vectors::multiply(Vectors::load_s8(gate + t * p.gate_stride, lanes), gate_scale);
          const Vector o = Vectors::multiply(y_both, gates);
          Vectors::store_quantized(out + t * E, lanes,
                                   Vectors::multiply(o, Vectors::broadcast(p.out_inv_scale_tok[t])));
        });
  }
}

// What runs one kind of state with one number of states.
struct ScanRunner {
  int lanes;
  void (*items)(const BidirectionalScanParams& p, const float* packed, char* scratch, Pieces<RangeCut>& pieces);
  size_t (*scratch_bytes)(const BidirectionalScanParams& p);  // of a worker
};

template <class Scan>
constexpr ScanRunner kScanRunner = {Scan::Vectors::kLanes, run_items<Scan>, worker_scratch_bytes<Scan>};

template <class Vectors, int N>
const ScanRunner& scan_runner_of(ScanState state) {
  switch (state) {
    case ScanState::kFp32:
      return kScanRunner<FloatScan<Vectors, N, false>>;
    case ScanState::kInt16:
      return kScanRunner<Int16Scan<Vectors, N>>;
    case ScanState::kInt8:
      break;
  }
  return kScanRunner<FloatScan<Vectors, N, true>>;
}

template <class Vectors>
const ScanRunner& scan_runner(const BidirectionalScanParams& p) {
  return p.states == 16 ? scan_runner_of<Vectors, 16>(p.state) : scan_runner_of<Vectors, 8>(p.state);
}

template <class Vectors>
size_t packed_bytes(const BidirectionalScanParams& p) {
  return bidirectional_scan_packed_bytes(p, scan_runner<Vectors>(p).lanes);
}

template <class Vectors>
void pack(const BidirectionalScanParams& p, void* packed) {
  bidirectional_scan_pack(p, scan_runner<Vectors>(p).lanes, static_cast<float*>(packed));
}

template <class Vectors>
size_t scratch_bytes(const BidirectionalScanParams& p, int threads) {
  return scan_runner<Vectors>(p).scratch_bytes(p) * static_cast<size_t>(threads);
}

template <class Vectors>
void run(const BidirectionalScanParams& p, const void* packed, void* scratch, int threads) {
  const ScanRunner& runner = scan_runner<Vectors>(p);
  const size_t worker_bytes = runner.scratch_bytes(p);
  const int64_t blocks = (static_cast<int64_t>(p.channels) + runner.lanes - 1) / runner.lanes;
  run_workers(threads, RangeCut(p.batch * blocks, 1), [&](int worker, auto& pieces) {
    runner.items(p, static_cast<const float*>(packed), static_cast<char*>(scratch) + worker * worker_bytes, pieces);
  });
}

template <class Vectors>
constexpr CpuKernels<BidirectionalScanParams> kScanKernels = {packed_bytes<Vectors>, pack<Vectors>,
                                                              scratch_bytes<Vectors>, run<Vectors>};

}  // namespace
}  // namespace vimtrt
