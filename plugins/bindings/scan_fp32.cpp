#include "plugins/bindings/scan_fp32.h"

#include <cstring>
#include <vector>

// The compiler makes one copy per instruction set and picks at load time; other processors get the plain build.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VIMTRT_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VIMTRT_CLONES
#endif
#define VIMTRT_INLINE inline __attribute__((always_inline))

namespace vimtrt {
namespace {

constexpr int kLanes = 16;  // channels side by side
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t IntLanes __attribute__((vector_size(kLanes * sizeof(int32_t))));

VIMTRT_INLINE Lanes load(const float* p, int64_t valid) {
  Lanes x{};
  if (valid >= kLanes) {
    memcpy(&x, p, sizeof x);
  } else {
    memcpy(&x, p, valid * sizeof(float));
  }
  return x;
}

VIMTRT_INLINE void store(float* p, const Lanes& x, int64_t valid) {
  memcpy(p, &x, (valid >= kLanes ? kLanes : valid) * sizeof(float));
}

#define VIMTRT_SPLAT(x) {x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}

// 2^x for x <= 0, as everywhere in this file. Constants are written out: gcc builds a splat of a scalar lane by lane in
// the cloned functions.
VIMTRT_INLINE Lanes exp2_lanes(Lanes x) {
  const Lanes lowest = VIMTRT_SPLAT(-126.0f);
  x = x > lowest ? x : lowest;
  // Floor, since the argument is not negative.
  const IntLanes whole = __builtin_convertvector(x - lowest, IntLanes) - 126;
  const Lanes f = x - __builtin_convertvector(whole, Lanes);
  const Lanes c0 = VIMTRT_SPLAT(1.0f), c1 = VIMTRT_SPLAT(0.6931531f), c2 = VIMTRT_SPLAT(0.24016444f),
              c3 = VIMTRT_SPLAT(0.05579994f), c4 = VIMTRT_SPLAT(0.00901703f), c5 = VIMTRT_SPLAT(0.00186713f);
  Lanes p = ((((c5 * f + c4) * f + c3) * f + c2) * f + c1) * f + c0;
  IntLanes bits;
  memcpy(&bits, &p, sizeof bits);
  bits += whole << 23;
  memcpy(&p, &bits, sizeof p);
  return p;
}

constexpr Lanes kLog2E = VIMTRT_SPLAT(1.44269504f);

template <int N>
VIMTRT_INLINE void load_decay(const float* a, int64_t channel, int64_t valid, Lanes* out) {
  for (int n = 0; n < N; ++n) {
    for (int lane = 0; lane < kLanes; ++lane) out[n][lane] = lane < valid ? a[(channel + lane) * N + n] : -1.0f;
  }
}

template <int N>
VIMTRT_INLINE void forward_block(const ScanFp32Shape& s, const ScanFp32Inputs& in, float* y, int64_t image,
                                 int64_t channel) {
  const int64_t valid = s.channels - channel;
  Lanes a2[N], h[N] = {};
  load_decay<N>(in.a, channel, valid, a2);
  for (int n = 0; n < N; ++n) a2[n] *= kLog2E;
  const Lanes d = load(in.d + channel, valid);
  for (int64_t step = 0; step < s.tokens; ++step) {
    const int64_t token = image * s.tokens + (s.reverse ? s.tokens - 1 - step : step);
    const Lanes u = load(in.u + token * s.channels + channel, valid);
    const Lanes delta = load(in.delta + token * s.channels + channel, valid);
    const Lanes drive = delta * u;
    const float *b = in.b + token * N, *c = in.c + token * N;
    Lanes sum = d * u;
    for (int n = 0; n < N; ++n) {
      h[n] = exp2_lanes(delta * a2[n]) * h[n] + drive * b[n];
      sum += h[n] * c[n];
    }
    store(y + token * s.channels + channel, sum, valid);
  }
}

// A struct, because containers drop the alignment of a bare vector type.
struct alignas(sizeof(Lanes)) Slot {
  Lanes v;
};

// Per-thread memory of the backward pass: the block's states and decays, and sums that are reduced over
// lanes once per image.
struct Workspace {
  std::vector<Slot> h, decay, db, dc;
  std::vector<float> da, dd;
};

template <int N>
VIMTRT_INLINE void backward_block(const ScanFp32Shape& s, const ScanFp32Inputs& in, const float* dy_all,
                                  const ScanFp32Gradients& out, int64_t image, int64_t channel, Workspace& w) {
  const int64_t valid = s.channels - channel, L = s.tokens;
  Lanes a[N], carry[N] = {}, da[N] = {};
  load_decay<N>(in.a, channel, valid, a);
  Slot *h = w.h.data(), *decay = w.decay.data(), *db = w.db.data(), *dc = w.dc.data();
  const Lanes d = load(in.d + channel, valid);
  Lanes dd{};
  for (int n = 0; n < N; ++n) h[n].v = Lanes{};  // h[step + 1] is the state after `step`
  for (int64_t step = 0; step < L; ++step) {
    const int64_t token = image * L + (s.reverse ? L - 1 - step : step);
    const Lanes u = load(in.u + token * s.channels + channel, valid);
    const Lanes delta = load(in.delta + token * s.channels + channel, valid);
    const Lanes drive = delta * u, delta2 = delta * kLog2E;
    const float* b = in.b + token * N;
    for (int n = 0; n < N; ++n) {
      const Lanes e = exp2_lanes(delta2 * a[n]);
      decay[step * N + n].v = e;
      h[(step + 1) * N + n].v = e * h[step * N + n].v + drive * b[n];
    }
  }
  for (int64_t step = L - 1; step >= 0; --step) {
    const int64_t token = image * L + (s.reverse ? L - 1 - step : step);
    const Lanes u = load(in.u + token * s.channels + channel, valid);
    const Lanes delta = load(in.delta + token * s.channels + channel, valid);
    const Lanes dy = load(dy_all + token * s.channels + channel, valid);
    const Lanes drive = delta * u;
    const float *b = in.b + token * N, *c = in.c + token * N;
    Lanes ddrive{}, ddelta{};
    for (int n = 0; n < N; ++n) {
      const Lanes dh = carry[n] + dy * c[n];
      dc[step * N + n].v += dy * h[(step + 1) * N + n].v;
      db[step * N + n].v += dh * drive;
      ddrive += dh * b[n];
      const Lanes dlog = dh * h[step * N + n].v * decay[step * N + n].v;
      ddelta += dlog * a[n];
      da[n] += dlog * delta;
      carry[n] = dh * decay[step * N + n].v;
    }
    dd += dy * u;
    store(out.u + token * s.channels + channel, ddrive * delta + dy * d, valid);
    store(out.delta + token * s.channels + channel, ddrive * u + ddelta, valid);
  }
  for (int lane = 0; lane < kLanes && lane < valid; ++lane) {
    w.dd[channel + lane] += dd[lane];
    for (int n = 0; n < N; ++n) w.da[(channel + lane) * N + n] += da[n][lane];
  }
}

template <int N>
VIMTRT_INLINE void backward_image(const ScanFp32Shape& s, const ScanFp32Inputs& in, const float* dy,
                                  const ScanFp32Gradients& out, int64_t image, Workspace& w) {
  const int64_t L = s.tokens;
  w.db.assign(L * N, Slot{});
  w.dc.assign(L * N, Slot{});
  for (int64_t channel = 0; channel < s.channels; channel += kLanes)
    backward_block<N>(s, in, dy, out, image, channel, w);
  for (int64_t step = 0; step < L; ++step) {
    const int64_t token = image * L + (s.reverse ? L - 1 - step : step);
    for (int n = 0; n < N; ++n) {
      float db = 0.0f, dc = 0.0f;
      for (int lane = 0; lane < kLanes; ++lane) {
        db += w.db[step * N + n].v[lane];
        dc += w.dc[step * N + n].v[lane];
      }
      out.b[token * N + n] = db;
      out.c[token * N + n] = dc;
    }
  }
}

#define VIMTRT_DEFINE_SCAN(N)                                                                               \
  VIMTRT_CLONES void forward_##N(const ScanFp32Shape& s, const ScanFp32Inputs& in, float* y, int64_t image, \
                                 int64_t channel) {                                                         \
    forward_block<N>(s, in, y, image, channel);                                                             \
  }                                                                                                         \
  VIMTRT_CLONES void backward_##N(const ScanFp32Shape& s, const ScanFp32Inputs& in, const float* dy,        \
                                  const ScanFp32Gradients& out, int64_t image, Workspace& w) {              \
    backward_image<N>(s, in, dy, out, image, w);                                                            \
  }
VIMTRT_DEFINE_SCAN(8)
VIMTRT_DEFINE_SCAN(16)
#undef VIMTRT_DEFINE_SCAN

}  // namespace

bool scan_fp32_supports(int32_t states) { return states == 8 || states == 16; }

void scan_fp32_forward(const ScanFp32Shape& s, const ScanFp32Inputs& in, float* y, int threads) {
  const int64_t blocks = (s.channels + kLanes - 1) / kLanes;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t item = 0; item < s.batch * blocks; ++item) {
    const int64_t image = item / blocks, channel = item % blocks * kLanes;
    s.states == 16 ? forward_16(s, in, y, image, channel) : forward_8(s, in, y, image, channel);
  }
}

void scan_fp32_backward(const ScanFp32Shape& s, const ScanFp32Inputs& in, const float* dy, const ScanFp32Gradients& out,
                        int threads) {
  const size_t steps = static_cast<size_t>(s.tokens) * s.states, decays = static_cast<size_t>(s.channels) * s.states;
  std::vector<Workspace> workspaces(threads);
  for (Workspace& w : workspaces) {
    w.h.resize(steps + s.states);
    w.decay.resize(steps);
    w.da.assign(decays, 0.0f);
    w.dd.assign(s.channels, 0.0f);
  }
  // Static shares of the images per thread: the order of the sums, so the result, depends on the thread count only.
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int share = 0; share < threads; ++share) {
    const int64_t begin = s.batch * share / threads, end = s.batch * (share + 1) / threads;
    for (int64_t image = begin; image < end; ++image) {
      s.states == 16 ? backward_16(s, in, dy, out, image, workspaces[share])
                     : backward_8(s, in, dy, out, image, workspaces[share]);
    }
  }
  memset(out.a, 0, decays * sizeof(float));
  memset(out.d, 0, s.channels * sizeof(float));
  for (const Workspace& w : workspaces) {
    for (size_t i = 0; i < decays; ++i) out.a[i] += w.da[i];
    for (int64_t i = 0; i < s.channels; ++i) out.d[i] += w.dd[i];
  }
}

}  // namespace vimtrt
