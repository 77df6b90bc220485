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

// Steps that a block of channels takes at a time.
constexpr int kStepsTogether = 512;

// Not std::min: what is not inlined of it is a weak symbol with wide instructions, which any program may get.
template <class Number>
Number smaller(Number a, Number b) {
  return b < a ? b : a;
}

// What a work item has: a few images of one block of channels, which share its tables; of sequences longer than
// kStepsTogether a few neighbouring blocks of one image, which take these steps in turns, so that their B and C, and
// the lines of which each block takes a part, stay in the caches. Something is left to share between the threads.
struct Group {
  int64_t images, blocks;

  Group(const BidirectionalScanParams& p, int64_t all_blocks, int threads) : images(1), blocks(1) {
    constexpr int64_t kMost = 4;
    const int64_t pairs = p.batch * all_blocks;
    if (p.tokens > kStepsTogether) {
      blocks = between(pairs / (2 * static_cast<int64_t>(threads)), kMost);
    } else {
      images = between(pairs / (4 * static_cast<int64_t>(threads)), kMost);
    }
  }

 private:
  static int64_t between(int64_t count, int64_t most) { return count < 1 ? 1 : smaller(count, most); }
};

// Where a worker's scratch has what, in bytes: tables; of each image and block of a group the state between one run of
// steps and the next, and y of the forward direction; of each image B and C of both directions, scaled.
template <class Scan>
struct ScanScratch {
  size_t tables, states, y_forward, y_forward_bytes, bc[2], bc_bytes, bytes = 0;

  ScanScratch(const BidirectionalScanParams& p, const Group& group) {
    const size_t L = static_cast<size_t>(p.tokens), images = static_cast<size_t>(group.images),
                 blocks = static_cast<size_t>(group.blocks);
    tables = take(sizeof(typename Scan::Tables));
    states = take(images * blocks * sizeof(typename Scan::State));
    y_forward_bytes = whole_lines(L * Scan::kLanes * sizeof(float));
    y_forward = take(images * blocks * y_forward_bytes);
    bc_bytes = whole_lines(smaller<size_t>(L, kStepsTogether) * 2 * Scan::N * sizeof(float));
    for (size_t& of_direction : bc) of_direction = take(images * bc_bytes);
  }

 private:
  static size_t whole_lines(size_t count) { return (count + 63) / 64 * 64; }
  size_t take(size_t count) {
    const size_t taken = bytes;
    bytes += whole_lines(count);
    return taken;
  }
};

template <class Scan>
size_t worker_scratch_bytes(const BidirectionalScanParams& p, const Group& group) {
  return ScanScratch<Scan>(p, group).bytes;
}

// A worker's scratch with one group of images and blocks.
template <class Scan>
class GroupScan {
 public:
  using Vectors = typename Scan::Vectors;
  using Vector = typename Vectors::Vector;
  static constexpr int kLanes = Vectors::kLanes, kDirection = Scan::kDirectionRows * kLanes;

  GroupScan(const BidirectionalScanParams& p, const float* packed, const Group& group, char* scratch)
      : p_(p), packed_(packed), scratch_(scratch), at_(p, group) {}

  void run(WorkRange images, WorkRange blocks) {
    const int64_t L = p_.tokens, E = p_.channels;
    scan(0, images, blocks, [](int64_t, int64_t, float* y_forward) {
      return [=](int t, Vector y)
                 VIMTRT_ALWAYS_INLINE { Vectors::store(y_forward + static_cast<int64_t>(t) * kLanes, y); };
    });
    scan(1, images, blocks, [&](int64_t image, int64_t block, const float* y_forward) {
      const BidirectionalScanParams& p = p_;
      const int8_t* gate = p.gate + image * L * p.gate_stride + block * kLanes;
      int8_t* out = p.y + image * L * E + block * kLanes;
      const typename Vectors::Lanes lanes = Vectors::lanes(E - block * kLanes);
      const Vector gate_scale = Vectors::load(record(block) + 2 * kDirection);
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
    });
    first_scaled_ = L <= kStepsTogether ? images.begin : -1;
  }

 private:
  template <class Type>
  Type* memory(size_t bytes) const {
    return reinterpret_cast<Type*>(scratch_ + bytes);
  }
  const float* record(int64_t block) const { return packed_ + block * (2 * kDirection + kLanes); }

  // One direction; sink_of(image, block, y_forward) is called with t and y.
  template <class SinkOf>
  void scan(int d, WorkRange images, WorkRange blocks, const SinkOf& sink_of) {
    auto* tables = memory<typename Scan::Tables>(at_.tables);
    for (int begin = 0; begin < p_.tokens; begin += kStepsTogether) {
      const Steps steps = {begin, smaller(begin + kStepsTogether, p_.tokens)};
      if (images.begin != first_scaled_) {
        for (int64_t image = images.begin; image < images.end; ++image)
          Scan::scale_bc(p_, d, image, steps, bc(d, image - images.begin));
      }
      size_t member = 0;
      for (int64_t block = blocks.begin; block < blocks.end; ++block) {
        const int first_channel = static_cast<int>(block) * kLanes;
        const float* constants = record(block) + d * kDirection;
        Scan::fill(constants, *tables);
        for (int64_t image = images.begin; image < images.end; ++image, ++member) {
          float* y_forward = memory<float>(at_.y_forward + member * at_.y_forward_bytes);
          Scan::scan_block(p_, d, image, first_channel, Vectors::lanes(p_.channels - first_channel), constants, steps,
                           bc(d, image - images.begin), *tables, memory<typename Scan::State>(at_.states)[member],
                           sink_of(image, block, y_forward));
        }
      }
    }
  }
  float* bc(int d, int64_t member) const {
    return memory<float>(at_.bc[d] + static_cast<size_t>(member) * at_.bc_bytes);
  }

  const BidirectionalScanParams& p_;
  const float* packed_;
  char* scratch_;
  const ScanScratch<Scan> at_;
  int64_t first_scaled_ = -1;  // of the images whose B and C are there as a whole
};

template <class Scan>
void run_items(const BidirectionalScanParams& p, const float* packed, const Group& group, char* scratch,
               Pieces<RangeCut>& pieces) {
  const int64_t blocks = (int64_t{p.channels} + Scan::kLanes - 1) / Scan::kLanes,
                groups = pieces_in(blocks, group.blocks);
  GroupScan<Scan> scan(p, packed, group, scratch);
  for (WorkRange range; pieces.next(range);) {
    const int64_t image = range.begin / groups * group.images, block = range.begin % groups * group.blocks;
    scan.run({image, smaller(image + group.images, int64_t{p.batch})}, {block, smaller(block + group.blocks, blocks)});
  }
}

// What runs one kind of state with one number of states.
struct ScanRunner {
  int lanes;
  void (*items)(const BidirectionalScanParams& p, const float* packed, const Group& group, char* scratch,
                Pieces<RangeCut>& pieces);
  size_t (*scratch_bytes)(const BidirectionalScanParams& p, const Group& group);  // of a worker

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
  // A run may have fewer threads, and each of fewer may take larger groups.
  size_t most = 0;
  for (int count = 1; count <= threads; ++count) {
    const size_t bytes = runner.scratch_bytes(p, Group(p, runner.blocks(p), count)) * count;
    most = most < bytes ? bytes : most;
  }
  return most;
}

template <class Vectors>
void run(const BidirectionalScanParams& p, const void* packed, void* scratch, int threads) {
  const ScanRunner& runner = scan_runner<Vectors>(p);
  const int64_t blocks = runner.blocks(p);
  const Group group(p, blocks, threads);
  const size_t worker_bytes = runner.scratch_bytes(p, group);
  const int64_t items = pieces_in(p.batch, group.images) * pieces_in(blocks, group.blocks);
  run_workers(threads, RangeCut(items, 1), [&](int worker, auto& pieces) {
    runner.items(p, static_cast<const float*>(packed), group, static_cast<char*>(scratch) + worker * worker_bytes,
                 pieces);
  });
}

template <class Vectors>
constexpr CpuKernels<BidirectionalScanParams> kScanKernels = {packed_bytes<Vectors>, pack<Vectors>,
                                                              scratch_bytes<Vectors>, run<Vectors>};

}  // namespace
}  // namespace vimtrt
