// The kernels of probes.h.
#include "plugins/common/cuda.h"
#include "tests/native/probes.h"

namespace vimtrt {
namespace probes {
namespace {

VIMTRT_DEVICE int self() { return static_cast<int>(cuda::thread_x()); }

// One warp. Shared, with ldmatrix: a, 16 rows of 32 bytes, whose four 8 x 16 parts are the matrices that the lanes
// address.
VIMTRT_KERNEL void multiply_kernel(const int8_t* a, const int8_t* b, int32_t* d, bool with_ldmatrix) {
  const int lane = self();
  const int g = lane / 4, t = lane % 4;
  int8_t* rows = cuda::dynamic_shared<int8_t>();
  reinterpret_cast<uint4*>(rows)[lane] = cuda::load(reinterpret_cast<const uint4*>(a) + lane);
  cuda::sync_warp();
  uint32_t of_a[4], of_b[2];
  if (with_ldmatrix) {
    const int matrix = lane / 8;
    cuda::ldmatrix_x4(of_a, rows + (lane % 8 + matrix % 2 * 8) * 32 + matrix / 2 * 16);
  } else {
    for (int i = 0; i < 4; ++i)
      of_a[i] = cuda::load(reinterpret_cast<const uint32_t*>(a + (g + i % 2 * 8) * 32 + i / 2 * 16 + 4 * t));
  }
  for (int i = 0; i < 2; ++i) of_b[i] = cuda::load(reinterpret_cast<const uint32_t*>(b + g * 32 + i * 16 + 4 * t));
  int32_t sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = d[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  cuda::mma_s8_m16n8k32(sums, of_a, of_b);
  for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

// One warp.
template <class T>
VIMTRT_KERNEL void shuffle_kernel(const T* x, T* xored, T* sent) {
  const T value = cuda::load(x + self());
  for (int i = 0; i < 32; ++i) {
    xored[i * 32 + self()] = cuda::shuffle_xor(value, i);
    sent[i * 32 + self()] = cuda::shuffle(value, i);
  }
}

VIMTRT_KERNEL void dp4a_kernel(const int32_t* a, const int32_t* b, const int32_t* c, int32_t* d) {
  d[self()] = cuda::dp4a(cuda::load(a + self()), cuda::load(b + self()), cuda::load(c + self()));
}

VIMTRT_KERNEL void byte_permute_kernel(const int32_t* a, const int32_t* b, const int32_t* c, int32_t* d) {
  const auto bits = [](const int32_t* from) { return static_cast<uint32_t>(cuda::load(from + self())); };
  d[self()] = static_cast<int32_t>(cuda::byte_permute(bits(a), bits(b), bits(c)));
}

VIMTRT_KERNEL void scale_kernel(const float* x, float factor, float* y, int n) {
  const int i = static_cast<int>(cuda::block_x() * cuda::threads_x() + cuda::thread_x());
  if (i < n) y[i] = cuda::load(x + i) * factor;
}

VIMTRT_KERNEL void nothing_kernel() {}

}  // namespace

int multiply(const int8_t* a, const int8_t* b, int32_t* d, bool with_ldmatrix, cuda::Stream stream) {
  return cuda::launch(multiply_kernel, cuda::Grid{}, 32, 512, stream, a, b, d, with_ldmatrix);
}

template <class T>
int shuffle(const T* x, T* xored, T* sent, cuda::Stream stream) {
  return cuda::launch(shuffle_kernel<T>, cuda::Grid{}, 32, 0, stream, x, xored, sent);
}
template int shuffle(const float*, float*, float*, cuda::Stream);
template int shuffle(const int64_t*, int64_t*, int64_t*, cuda::Stream);

int dp4a(const int32_t* a, const int32_t* b, const int32_t* c, int32_t* d, cuda::Stream stream) {
  return cuda::launch(dp4a_kernel, cuda::Grid{}, 32, 0, stream, a, b, c, d);
}

int byte_permute(const int32_t* a, const int32_t* b, const int32_t* c, int32_t* d, cuda::Stream stream) {
  return cuda::launch(byte_permute_kernel, cuda::Grid{}, 32, 0, stream, a, b, c, d);
}

int scale(const float* x, float factor, float* y, int n, cuda::Stream stream) {
  constexpr unsigned kBlock = 48;  // not whole warps: allowed where no warp-wide call is made
  return cuda::launch(scale_kernel, cuda::Grid{(static_cast<unsigned>(n) + kBlock - 1) / kBlock}, kBlock, 0, stream, x,
                      factor, y, n);
}

int launch_nothing(unsigned x, unsigned y, unsigned z, unsigned threads, size_t shared_bytes, cuda::Stream stream) {
  return cuda::launch(nothing_kernel, cuda::Grid{x, y, z}, threads, shared_bytes, stream);
}

}  // namespace probes
}  // namespace vimtrt
