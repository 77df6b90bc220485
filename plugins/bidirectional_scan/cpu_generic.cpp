// BidirectionalScan as docs/numerics.md writes it, one channel at a time; also the layout that
// the vector kernels share.
#include <cmath>

#include "plugins/bidirectional_scan/cpu.h"
#include "plugins/bidirectional_scan/decay.h"
#include "plugins/common/numerics.h"
#include "plugins/common/threads.h"

namespace vimtrt {
namespace {

constexpr int kMaxStates = 16, kChains = 4;

// One channel and state: the powers whose products are the decay, and h, or hq.
struct State {
  float high[kDecayPowers];
  float low[kDecayPowers];
  float h = 0.0f;
};

// y[d] of one channel of one image: sink(t, y) is called once per token, in the direction's order.
template <class Sink>
void scan_channel(const BidirectionalScanParams& p, int d, int64_t image, int e, const Sink& sink) {
  const int L = p.tokens, E = p.channels, N = p.states;
  const float* a_log2 = p.a_log2 + (static_cast<int64_t>(d) * E + e) * N;
  const float* b_scale_state = p.b_scale_state + d * N;
  const float* c_scale_state = p.c_scale_state + d * N;
  const int64_t tok = static_cast<int64_t>(d) * L;
  const float k = p.input_scale[d * E + e], y_scale = p.y_scale[d * E + e], skip_scale = p.skip_scale[d * E + e];

  State states[kMaxStates];
  for (int n = 0; n < N; ++n) {
    decay_powers(exp2c(16.0f * a_log2[n]), states[n].high);
    decay_powers(exp2c(a_log2[n]), states[n].low);
  }
  for (int step = 0; step < L; ++step) {
    const int t = d == 0 ? step : L - 1 - step;
    const int8_t* bc = p.bc[d] + (image * L + t) * p.bc_stride;
    const float u = p.u[d][(image * L + t) * E + e];
    const int delta = p.delta[d][(image * L + t) * E + e] + 128;
    const float g = std::fma(static_cast<float>(delta) * u, k, kLeastDrive);
    float chain[kChains];
    for (int n = 0; n < N; ++n) {
      State& state = states[n];
      const float b = g * std::fma(static_cast<float>(bc[n]) * b_scale_state[n], p.b_scale_tok[tok + t], kLeastDrive);
      const float c = (static_cast<float>(bc[N + n]) * c_scale_state[n]) * p.c_scale_tok[tok + t];
      float a = state.high[delta >> 4] * state.low[delta & 15];
      if (p.state == ScanState::kInt8) a = a * p.decay_tok[tok + t];
      const float h = std::fma(a, state.h, b);
      state.h = p.state == ScanState::kInt8 ? static_cast<float>(quantize_s8(h)) : h;
      chain[n % kChains] = n < kChains ? h * c : std::fma(h, c, chain[n % kChains]);
    }
    sink(t, std::fma(u, skip_scale, ((chain[0] + chain[2]) + (chain[1] + chain[3])) * y_scale));
  }
}

size_t scratch_bytes(const BidirectionalScanParams& p, int threads) { return sizeof(float) * p.tokens * threads; }

void run(const BidirectionalScanParams& p, const void*, void* scratch, int threads) {
  const int64_t L = p.tokens, E = p.channels;
  run_workers(threads, RangeCut(p.batch * E, 1), [&](int worker, auto& pieces) {
    float* y_forward = static_cast<float*>(scratch) + worker * L;
    for (WorkRange range; pieces.next(range);) {
      const int64_t item = range.begin, image = item / E;
      const int e = static_cast<int>(item % E);
      scan_channel(p, 0, image, e, [&](int t, float y) { y_forward[t] = y; });
      scan_channel(p, 1, image, e, [&](int t, float y) {
        const float gate = p.gate[(image * L + t) * p.gate_stride + e];
        const float o = (y_forward[t] + y) * (gate * p.gate_scale[e]);
        p.y[(image * L + t) * E + e] = quantize_s8(o * p.out_inv_scale_tok[t]);
      });
    }
  });
}

}  // namespace

size_t bidirectional_scan_packed_bytes(const BidirectionalScanParams& p, int lanes) {
  const size_t blocks = (p.channels + lanes - 1) / lanes;
  return sizeof(float) * blocks * lanes * (2 * bidirectional_scan_direction_rows(p.states) + 1);
}

void bidirectional_scan_pack(const BidirectionalScanParams& p, int lanes, float* packed) {
  const int E = p.channels, N = p.states;
  for (int first = 0; first < E; first += lanes) {
    const auto row = [&](const float* source) {
      for (int lane = 0; lane < lanes; ++lane) *packed++ = first + lane < E ? source[first + lane] : 0.0f;
    };
    for (int d = 0; d < 2; ++d) {
      const float* a_log2 = p.a_log2 + static_cast<int64_t>(d) * E * N;
      for (const float delta : {16.0f, 1.0f}) {
        for (int64_t i = static_cast<int64_t>(first) * N; i < static_cast<int64_t>(first + lanes) * N; ++i)
          *packed++ = held_power(i < static_cast<int64_t>(E) * N ? exp2c(delta * a_log2[i]) : 1.0f);
      }
      row(p.input_scale + d * E);
      row(p.y_scale + d * E);
      row(p.skip_scale + d * E);
    }
    row(p.gate_scale);
  }
}

const CpuKernels<BidirectionalScanParams> kBidirectionalScanGeneric = {no_packed_bytes, no_pack, scratch_bytes, run};

}  // namespace vimtrt
