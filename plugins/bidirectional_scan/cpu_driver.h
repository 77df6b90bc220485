// What the vector kernels of BidirectionalScan share: the order of work. `Vectors` is an instruction set's, in an
// unnamed namespace of its file:
//
//   kLanes, Vector, Lanes                   channels of a block, a number of each, and which of them there are
//   lanes(left)
//   load(source), store(target, v), broadcast(x), add(a, b), multiply(a, b), fma(a, b, c)
//   load_bytes(source, lanes)               a byte of each channel, zeros where there is none
//   as_floats(bytes), unsigned_bytes(bytes), unsigned_as_floats(bytes)     unsigned_bytes: 128 more
//   store_halves(bytes, high, low)          16 times the high half, 8 times the low half
//   store_quantized(target, lanes, v), prefetch(address)
//   Rows<N>, sums<N>(update, c)             the states (cpu_scan.h), and their sums with C
//
// Internal linkage, as in threads.h.
#pragma once

#include "plugins/bidirectional_scan/cpu.h"
#include "plugins/bidirectional_scan/cpu_scan.h"
#include "plugins/common/threads.h"

namespace vimtrt {
namespace {

// Steps that a block of channels takes at a time, and how many blocks take them in turns where there are more. So B and
// C of these steps, and the lines of which neighbouring blocks take a part each, stay in the caches.
constexpr int kStepsTogether = 512;
constexpr int64_t kMaxBlocksTogether = 4;

// Not std::min: what is not inlined of it is a weak symbol with wide instructions, which any program may get.
template <class Number>
Number smaller(Number a, Number b) {
  return b < a ? b : a;
}

inline int64_t blocks_together(const BidirectionalScanParams& p, int64_t blocks, int threads) {
  if (p.tokens <= kStepsTogether) return 1;
  const int64_t of_thread = p.batch * blocks / (2 * static_cast<int64_t>(threads));  // and something left to share
  return of_thread < 1 ? 1 : smaller(of_thread, kMaxBlocksTogether);
}

// Where a worker's scratch has what, in bytes: tables; states between one run of steps and the next, and y of the
// forward direction, of the blocks that take turns; B and C of both directions, scaled.
template <class Scan>
struct ScanScratch {
  size_t tables, states, y_forward, bc[2], bytes = 0;

  ScanScratch(const BidirectionalScanParams& p, int64_t together) {
    const size_t L = static_cast<size_t>(p.tokens), blocks = static_cast<size_t>(together);
    tables = take(sizeof(typename Scan::Tables));
    states = take(blocks * sizeof(typename Scan::State));
    y_forward = take(blocks * L * Scan::kLanes * sizeof(float));
    for (size_t& of_direction : bc)
      of_direction = take(smaller<size_t>(L, kStepsTogether) * 2 * Scan::N * sizeof(float));
  }

 private:
  size_t take(size_t count) {
    const size_t taken = bytes;
    bytes += (count + 63) / 64 * 64;
    return taken;
  }
};

template <class Scan>
size_t worker_scratch_bytes(const BidirectionalScanParams& p, int64_t together) {
  return ScanScratch<Scan>(p, together).bytes;
}

// One direction of some blocks; sink_of(block) is called with t and y.
template <class Scan, class SinkOf>
void scan_blocks(const BidirectionalScanParams& p, int d, int64_t image, WorkRange blocks, const float* packed,
                 const ScanScratch<Scan>& at, char* scratch, bool bc_is_scaled, const SinkOf& sink_of) {
  using Vectors = typename Scan::Vectors;
  constexpr int kLanes = Vectors::kLanes, kDirection = Scan::kDirectionRows * kLanes;
  float* bc = reinterpret_cast<float*>(scratch + at.bc[d]);
  auto* tables = reinterpret_cast<typename Scan::Tables*>(scratch + at.tables);
  auto* states = reinterpret_cast<typename Scan::State*>(scratch + at.states);
  for (int begin = 0; begin < p.tokens; begin += kStepsTogether) {
    const Steps steps = {begin, smaller(begin + kStepsTogether, p.tokens)};
    if (!bc_is_scaled) Scan::scale_bc(p, d, image, steps, bc);
    for (int64_t block = blocks.begin; block < blocks.end; ++block) {
      const int first_channel = static_cast<int>(block) * kLanes;
      Scan::scan_block(p, d, image, first_channel, Vectors::lanes(p.channels - first_channel),
                       packed + block * (2 * kDirection + kLanes) + d * kDirection, steps, bc, *tables,
                       states[block - blocks.begin], sink_of(block));
    }
  }
}

template <class Scan>
void run_items(const BidirectionalScanParams& p, const float* packed, int64_t together, char* scratch,
               Pieces<RangeCut>& pieces) {
  using Vectors = typename Scan::Vectors;
  using Vector = typename Vectors::Vector;
  constexpr int kLanes = Vectors::kLanes, kDirection = Scan::kDirectionRows * kLanes;
  const int64_t L = p.tokens, E = p.channels;
  const int64_t blocks = (E + kLanes - 1) / kLanes, groups = (blocks + together - 1) / together;
  const ScanScratch<Scan> at(p, together);
  float* const all_y_forward = reinterpret_cast<float*>(scratch + at.y_forward);
  int64_t scaled_image = -1;  // whose B and C are there as a whole
  for (WorkRange range; pieces.next(range);) {
    const int64_t image = range.begin / groups, first = range.begin % groups * together;
    const WorkRange group = {first, smaller(first + together, blocks)};
    const auto keep = [&](int64_t block) {
      float* y_forward = all_y_forward + (block - first) * L * kLanes;
      return [=](int t, Vector y)
                 VIMTRT_ALWAYS_INLINE { Vectors::store(y_forward + static_cast<int64_t>(t) * kLanes, y); };
    };
    const auto finish = [&](int64_t block) {
      const float* y_forward = all_y_forward + (block - first) * L * kLanes;
      const int8_t* gate = p.gate + image * L * p.gate_stride + block * kLanes;
      int8_t* out = p.y + image * L * E + block * kLanes;
      const typename Vectors::Lanes lanes = Vectors::lanes(E - block * kLanes);
      const Vector gate_scale = Vectors::load(packed + block * (2 * kDirection + kLanes) + 2 * kDirection);
      return [=, &p](int t, Vector y) VIMTRT_ALWAYS_INLINE {
        const int64_t ahead = t >= Scan::kAhead ? t - Scan::kAhead : t;
        Vectors::prefetch(gate + ahead * p.gate_stride);
        Vectors::prefetch(out + ahead * E);
        const Vector y_both = Vectors::add(Vectors::load(y_forward + static_cast<int64_t>(t) * kLanes), y);
        const Vector gates =
            Vectors::multiply(Vectors::as_floats(Vectors::load_bytes(gate + t * p.gate_stride, lanes)), gate_scale);
        const Vector o = Vectors::multiply(y_both, gates);
        Vectors::store_quantized(out + t * E, lanes, Vectors::multiply(o, Vectors::broadcast(p.out_inv_scale_tok[t])));
      };
    };
    scan_blocks(p, 0, image, group, packed, at, scratch, image == scaled_image, keep);
    scan_blocks(p, 1, image, group, packed, at, scratch, image == scaled_image, finish);
    if (L <= kStepsTogether) scaled_image = image;
  }
}

// What runs one kind of state with one number of states.
struct ScanRunner {
  int lanes;
  void (*items)(const BidirectionalScanParams& p, const float* packed, int64_t together, char* scratch,
                Pieces<RangeCut>& pieces);
  size_t (*scratch_bytes)(const BidirectionalScanParams& p, int64_t together);  // of a worker

  int64_t blocks(const BidirectionalScanParams& p) const { return (int64_t{p.channels} + lanes - 1) / lanes; }
};

template <class Scan>
constexpr ScanRunner kScanRunner = {Scan::Vectors::kLanes, run_items<Scan>, worker_scratch_bytes<Scan>};

template <class Vectors, int N>
const ScanRunner& scan_runner_of(ScanState state) {
  return state == ScanState::kInt8 ? kScanRunner<Scan<Vectors, N, true>> : kScanRunner<Scan<Vectors, N, false>>;
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
  const ScanRunner& runner = scan_runner<Vectors>(p);
  // A run may have fewer threads, and each of fewer may take more blocks.
  size_t most = 0;
  for (int count = 1; count <= threads; ++count) {
    const size_t bytes = runner.scratch_bytes(p, blocks_together(p, runner.blocks(p), count)) * count;
    most = most < bytes ? bytes : most;
  }
  return most;
}

template <class Vectors>
void run(const BidirectionalScanParams& p, const void* packed, void* scratch, int threads) {
  const ScanRunner& runner = scan_runner<Vectors>(p);
  const int64_t blocks = runner.blocks(p), together = blocks_together(p, blocks, threads);
  const size_t worker_bytes = runner.scratch_bytes(p, together);
  const int64_t groups = (blocks + together - 1) / together;
  run_workers(threads, RangeCut(p.batch * groups, 1), [&](int worker, auto& pieces) {
    runner.items(p, static_cast<const float*>(packed), together, static_cast<char*>(scratch) + worker * worker_bytes,
                 pieces);
  });
}

template <class Vectors>
constexpr CpuKernels<BidirectionalScanParams> kScanKernels = {packed_bytes<Vectors>, pack<Vectors>,
                                                              scratch_bytes<Vectors>, run<Vectors>};

}  // namespace
}  // namespace vimtrt
