// BidirectionalScan as docs/numerics.md writes it, one channel at a time; also the layout that
// the vector kernels share.
#include <algorithm>
#include <cmath>

#include "plugins/bidirectional_scan/cpu.h"
#include "plugins/bidirectional_scan/int16.h"
#include "plugins/common/numerics.h"
#include "plugins/common/threads.h"

namespace vimtrt {
namespace {

constexpr int kMaxStates = 16;

// The decays of one channel and state by the two halves of delta, and the state: docs/numerics.md, state "int16".
struct Int16State {
  int32_t high[kInt16Powers];
  int32_t low[kInt16Powers];  // minus the power
  int32_t h = 0;
};

void scan_tables(float a_log2, Int16State& state) {
  float high[kInt16Powers], low[kInt16Powers];
  int16_powers(exp2c(16.0f * a_log2), high);
  int16_powers(exp2c(a_log2), low);
  for (int k = 0; k < kInt16Powers; ++k) {
    state.high[k] = int16_high(high[k]);
    state.low[k] = int16_low(low[k]);
  }
}

template <class Sink>
void scan_channel_int16(const BidirectionalScanParams& p, int d, int64_t image, int e, const Sink& sink) {
  const int L = p.tokens, E = p.channels, N = p.states;
  const int64_t tok = static_cast<int64_t>(d) * L;
  const float k = p.input_scale[d * E + e], y_scale = p.y_scale[d * E + e], skip_scale = p.skip_scale[d * E + e];
  Int16State states[kMaxStates];
  for (int n = 0; n < N; ++n) scan_tables(p.a_log2[(static_cast<int64_t>(d) * E + e) * N + n], states[n]);
  for (int step = 0; step < L; ++step) {
    const int t = d == 0 ? step : L - 1 - step;
    const int8_t* bc = p.bc[d] + (image * L + t) * p.bc_stride;
    const int32_t u = p.u[d][(image * L + t) * E + e];
    const int32_t delta = p.delta[d][(image * L + t) * E + e] + 128;
    const float drive = (static_cast<float>(delta * u) * k) * p.b_scale_tok[tok + t];
    const bool is_large = !(std::fabs(drive) < kInt16LargeDrive);
    const int32_t g = int16_of(is_large ? drive * kInt16Sixteenth : drive);
    uint32_t sum = 0;  // modulo 2^32
    for (int n = 0; n < N; ++n) {
      Int16State& state = states[n];
      int32_t b = int16_multiply(int16_of(static_cast<float>(bc[n]) * p.b_scale_state[d * N + n]), g);
      if (is_large) b = int16_saturate(16 * b);
      const int32_t c = int16_of(static_cast<float>(bc[N + n]) * p.c_scale_state[d * N + n]);
      const int32_t decay = int16_multiply(state.high[delta >> 4], state.low[delta & 15]);
      state.h = int16_saturate(b - int16_multiply(state.h, decay));
      sum += static_cast<uint32_t>(state.h * c);
    }
    const float y = (static_cast<float>(static_cast<int32_t>(sum)) * y_scale) * p.c_scale_tok[tok + t];
    sink(t, std::fma(static_cast<float>(u), skip_scale, y));
  }
}

// y[d] of one channel of one image: sink(t, y) is called once per token, in the direction's order.
template <class Sink>
void scan_channel(const BidirectionalScanParams& p, int d, int64_t image, int e, const Sink& sink) {
  const int L = p.tokens, E = p.channels, N = p.states;
  const float* a_log2 = p.a_log2 + (static_cast<int64_t>(d) * E + e) * N;
  const float* b_scale_state = p.b_scale_state + d * N;
  const float* c_scale_state = p.c_scale_state + d * N;
  const int64_t tok = static_cast<int64_t>(d) * L;
  const float k = p.input_scale[d * E + e], y_scale = p.y_scale[d * E + e], skip_scale = p.skip_scale[d * E + e];

  float state[kMaxStates] = {};  // h, or hq
  for (int step = 0; step < L; ++step) {
    const int t = d == 0 ? step : L - 1 - step;
    const int8_t* bc = p.bc[d] + (image * L + t) * p.bc_stride;
    const float u = p.u[d][(image * L + t) * E + e];
    const float delta = static_cast<float>(p.delta[d][(image * L + t) * E + e] + 128);
    const float g = (delta * u) * k;
    float chain[kMaxStates / 4];
    for (int n = 0; n < N; ++n) {
      const float b = g * ((static_cast<float>(bc[n]) * b_scale_state[n]) * p.b_scale_tok[tok + t]);
      const float c = (static_cast<float>(bc[N + n]) * c_scale_state[n]) * p.c_scale_tok[tok + t];
      const float a = exp2c(std::fma(delta, a_log2[n], p.decay_tok[tok + t]));
      const float h = std::fma(a, state[n], b);
      state[n] = p.state == ScanState::kInt8 ? static_cast<float>(quantize_s8(h)) : h;
      chain[n / 4] = n % 4 == 0 ? h * c : std::fma(h, c, chain[n / 4]);
    }
    const float y_sum = N == 16 ? (chain[0] + chain[1]) + (chain[2] + chain[3]) : chain[0] + chain[1];
    sink(t, std::fma(u, skip_scale, y_sum * y_scale));
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
      const auto scan = [&](int d, const auto& sink) {
        if (p.state == ScanState::kInt16) {
          scan_channel_int16(p, d, image, e, sink);
        } else {
          scan_channel(p, d, image, e, sink);
        }
      };
      scan(0, [&](int t, float y) { y_forward[t] = y; });
      scan(1, [&](int t, float y) {
        const float gate = p.gate[(image * L + t) * p.gate_stride + e];
        const float o = (y_forward[t] + y) * (gate * p.gate_scale[e]);
        p.y[(image * L + t) * E + e] = quantize_s8(o * p.out_inv_scale_tok[t]);
      });
    }
  });
}

}  // namespace

// Whether no delta and token of a direction takes the exponents of channels first..last - 1 outside exp2c's range: fma
// is monotonic in each of its operands, rounded or not, so its extremes are at theirs.
static bool exponents_are_bounded(const BidirectionalScanParams& p, int d, int first, int last) {
  const float* decay = p.decay_tok + static_cast<int64_t>(d) * p.tokens;
  const auto [low, high] = std::minmax_element(decay, decay + p.tokens);
  bool bounded = std::fabs(*low) <= kExp2Limit && std::fabs(*high) <= kExp2Limit;
  const float* a_log2 = p.a_log2 + static_cast<int64_t>(d) * p.channels * p.states;
  for (int64_t i = static_cast<int64_t>(first) * p.states; i < static_cast<int64_t>(last) * p.states; ++i) {
    for (const float c : {*low, *high}) bounded = bounded && std::fabs(std::fma(255.0f, a_log2[i], c)) <= kExp2Limit;
  }
  return bounded;
}

size_t bidirectional_scan_packed_bytes(const BidirectionalScanParams& p, int lanes) {
  const size_t blocks = (p.channels + lanes - 1) / lanes;
  return sizeof(float) * blocks * lanes * (2 * bidirectional_scan_direction_rows(p.states, p.state) + 1);
}

void bidirectional_scan_pack(const BidirectionalScanParams& p, int lanes, float* packed) {
  const int E = p.channels, N = p.states;
  for (int first = 0; first < E; first += lanes) {
    const auto row = [&](const float* source, int stride) {
      for (int lane = 0; lane < lanes; ++lane) *packed++ = first + lane < E ? source[(first + lane) * stride] : 0.0f;
    };
    for (int d = 0; d < 2; ++d) {
      const float* a_log2 = p.a_log2 + static_cast<int64_t>(d) * E * N;
      if (p.state == ScanState::kInt16) {
        for (const float delta : {16.0f, 1.0f}) {
          for (int lane = 0; lane < lanes; ++lane) {
            for (int n = 0; n < N; ++n)
              *packed++ = first + lane < E ? exp2c(delta * a_log2[static_cast<int64_t>(first + lane) * N + n]) : 0.0f;
          }
        }
      } else {
        for (int n = 0; n < N; ++n) row(a_log2 + n, N);
      }
      row(p.input_scale + d * E, 1);
      row(p.y_scale + d * E, 1);
      row(p.skip_scale + d * E, 1);
      if (p.state == ScanState::kInt16) continue;
      packed = std::fill_n(packed, lanes, exponents_are_bounded(p, d, first, std::min(E, first + lanes)) ? 1.0f : 0.0f);
    }
    row(p.gate_scale, 1);
  }
}

const CpuKernels<BidirectionalScanParams> kBidirectionalScanGeneric = {no_packed_bytes, no_pack, scratch_bytes, run};

}  // namespace vimtrt
