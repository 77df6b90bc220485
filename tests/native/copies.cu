// The kernels of copies.h. One thread moves one unit: 16, 8, 4 or 1 bytes, the widest that sizes, strides and addresses
// are multiples of. Grid: units / kThreads; no shared memory.
#include "plugins/common/cuda.h"
#include "tests/native/copies.h"

namespace vimtrt {
namespace test {
namespace {

constexpr unsigned kThreads = 256;
constexpr int kMostDimensions = 8;
constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

struct Strides {
  int rank = 0;
  uint32_t shape[kMostDimensions] = {};
  int64_t strides[kMostDimensions] = {};
};

template <class Unit>
VIMTRT_KERNEL void strided_copy_kernel(const Unit* x, Unit* y, Strides s, uint32_t units) {
  const uint32_t unit = cuda::block_x() * cuda::threads_x() + cuda::thread_x();
  if (unit >= units) return;
  uint32_t rest = unit;
  int64_t source = 0;
  for (int d = s.rank - 1; d >= 0; --d) {
    source += static_cast<int64_t>(rest % s.shape[d]) * s.strides[d];
    rest /= s.shape[d];
  }
  y[unit] = cuda::load(x + source);
}

template <class Unit>
VIMTRT_KERNEL void gather_kernel(const Unit* x, Unit* y, const int64_t* indices, int64_t length, uint32_t count,
                                 uint32_t inner, uint32_t units) {
  const uint32_t unit = cuda::block_x() * cuda::threads_x() + cuda::thread_x();
  if (unit >= units) return;
  const uint32_t row = unit / inner;
  const int64_t source = static_cast<int64_t>(row / count) * length + cuda::load(indices + row % count);
  y[unit] = cuda::load(x + source * inner + unit % inner);
}

// Whether everything is a multiple of a unit's bytes.
bool fits(size_t unit, const void* x, const void* y, const std::vector<int64_t>& bytes) {
  bool all = reinterpret_cast<uintptr_t>(x) % unit == 0 && reinterpret_cast<uintptr_t>(y) % unit == 0;
  for (const int64_t each : bytes) all = all && each % static_cast<int64_t>(unit) == 0;
  return all;
}

cuda::Grid grid_of(uint64_t units) { return cuda::Grid{static_cast<unsigned>((units + kThreads - 1) / kThreads)}; }

template <class Unit>
int strided_copy(const void* x, void* y, Strides s, uint64_t units, cuda::Stream stream) {
  return cuda::launch(strided_copy_kernel<Unit>, grid_of(units), kThreads, 0, stream, static_cast<const Unit*>(x),
                      static_cast<Unit*>(y), s, static_cast<uint32_t>(units));
}

template <class Unit>
int gather(const void* x, void* y, const int64_t* indices, int64_t length, int64_t count, int64_t inner, uint64_t units,
           cuda::Stream stream) {
  return cuda::launch(gather_kernel<Unit>, grid_of(units), kThreads, 0, stream, static_cast<const Unit*>(x),
                      static_cast<Unit*>(y), indices, length, static_cast<uint32_t>(count),
                      static_cast<uint32_t>(inner), static_cast<uint32_t>(units));
}

}  // namespace

int strided_copy_launch(const void* x, void* y, size_t element_bytes, const std::vector<int64_t>& shape,
                        const std::vector<int64_t>& strides, cuda::Stream stream) {
  if (shape.size() != strides.size() || shape.empty() || shape.size() > kMostDimensions) return kInvalidValue;
  const auto element = static_cast<int64_t>(element_bytes);
  uint64_t bytes = element_bytes;
  std::vector<int64_t> multiples = {shape.back() * element};
  for (size_t d = 0; d < shape.size(); ++d) {
    bytes *= static_cast<uint64_t>(shape[d]);
    if (d + 1 < shape.size()) multiples.push_back(strides[d] * element);
  }
  if (bytes == 0) return 0;
  int64_t unit = element;  // more than an element only where the last dimension has no gaps
  for (const int64_t wider : {8, 16}) {
    if (strides.back() == 1 && wider % element == 0 && fits(static_cast<size_t>(wider), x, y, multiples)) unit = wider;
  }
  if (unit != 1 && unit != 4 && unit != 8 && unit != 16) return kInvalidValue;
  const uint64_t units = bytes / static_cast<uint64_t>(unit);
  if (units > UINT32_MAX) return kInvalidValue;
  Strides s;
  s.rank = static_cast<int>(shape.size());
  for (size_t d = 0; d < shape.size(); ++d) {
    const bool is_last = d + 1 == shape.size();
    s.shape[d] = static_cast<uint32_t>(is_last ? shape[d] * element / unit : shape[d]);
    s.strides[d] = is_last ? strides[d] : strides[d] * element / unit;
  }
  switch (unit) {
    case 16:
      return strided_copy<uint4>(x, y, s, units, stream);
    case 8:
      return strided_copy<uint2>(x, y, s, units, stream);
    case 4:
      return strided_copy<uint32_t>(x, y, s, units, stream);
    default:
      return strided_copy<uint8_t>(x, y, s, units, stream);
  }
}

int gather_launch(const void* x, void* y, const int64_t* indices, int64_t outer, int64_t length, int64_t count,
                  int64_t inner_bytes, cuda::Stream stream) {
  const int64_t bytes = outer * count * inner_bytes;
  if (bytes == 0) return 0;
  int64_t unit = 1;
  for (const int64_t wider : {4, 8, 16}) {
    if (fits(static_cast<size_t>(wider), x, y, {inner_bytes})) unit = wider;
  }
  const auto units = static_cast<uint64_t>(bytes / unit);
  if (units > UINT32_MAX) return kInvalidValue;
  switch (unit) {
    case 16:
      return gather<uint4>(x, y, indices, length, count, inner_bytes / 16, units, stream);
    case 8:
      return gather<uint2>(x, y, indices, length, count, inner_bytes / 8, units, stream);
    case 4:
      return gather<uint32_t>(x, y, indices, length, count, inner_bytes / 4, units, stream);
    default:
      return gather<uint8_t>(x, y, indices, length, count, inner_bytes, units, stream);
  }
}

}  // namespace test
}  // namespace vimtrt
