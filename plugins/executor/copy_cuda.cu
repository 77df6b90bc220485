// The kernels of copy_cuda.h. A unit is 16, 8, 4, 2 or 1 bytes, the widest that sizes, strides and addresses are
// multiples of. A thread moves one of 4 bytes and more; of smaller ones it reads as many as make 4 bytes and writes
// these at once, since what a copy reads apart it writes side by side. Grid: words / kThreads; no shared memory.
#include "plugins/common/cuda.h"
#include "plugins/common/cuda_launch.h"
#include "plugins/executor/copy_cuda.h"

namespace vimtrt {
namespace {

constexpr unsigned kThreads = 256;
constexpr int64_t kMostUnits = int64_t{1} << 30;  // of a launch: unit numbers, and four more, fit 32 bits
constexpr int kInvalidValue = 1;                  // cudaErrorInvalidValue

// Where an output's unit comes from: its place in the sample, in units, along dimensions of whole units.
constexpr int kMostRank = kMostCopyDimensions + 2;  // the batch, and the units of an element
struct Places {
  int rank = 0;
  uint32_t shape[kMostRank] = {};
  int64_t strides[kMostRank] = {};
};

VIMTRT_DEVICE int64_t source_of(const Places& places, uint32_t unit) {
  int64_t place = 0;
#pragma unroll
  for (int d = kMostRank - 1; d > 0; --d) {  // known places of the parameters, which are not copied to a stack then
    if (d >= places.rank) continue;
    place += static_cast<int64_t>(unit % places.shape[d]) * places.strides[d];
    unit /= places.shape[d];
  }
  return place + static_cast<int64_t>(unit) * places.strides[0];
}

// Rows of `inner` units, by their indices.
struct Rows {
  const int64_t* indices = nullptr;
  int64_t length = 0;
  uint32_t count = 1;
  uint32_t inner = 1;
};

VIMTRT_DEVICE int64_t source_of(const Rows& rows, uint32_t unit) {
  const uint32_t row = unit / rows.inner;
  const int64_t index = cuda::load(rows.indices + row % rows.count);
  return (static_cast<int64_t>(row / rows.count) * rows.length + index) * rows.inner + unit % rows.inner;
}

// `words` says that y is aligned to 4 bytes.
template <class Unit, class Source>
VIMTRT_KERNEL void executor_kernel(const Unit* x, Unit* y, Source source, uint32_t units, bool words) {
  constexpr uint32_t kUnits = sizeof(Unit) < 4 ? 4 / sizeof(Unit) : 1;
  const uint32_t first = (cuda::block_x() * cuda::threads_x() + cuda::thread_x()) * kUnits;
  if (first >= units) return;
  if constexpr (kUnits == 1) {
    y[first] = cuda::load(x + source_of(source, first));
  } else {
    if (words && first + kUnits <= units) {
      uint32_t word = 0;
      for (uint32_t i = 0; i < kUnits; ++i)
        word |= static_cast<uint32_t>(cuda::load(x + source_of(source, first + i))) << (8 * sizeof(Unit) * i);
      *reinterpret_cast<uint32_t*>(y + first) = word;
    } else {
      for (uint32_t i = 0; i < kUnits && first + i < units; ++i)
        y[first + i] = cuda::load(x + source_of(source, first + i));
    }
  }
}

template <class Unit, class Source>
int start(const uint8_t* x, uint8_t* y, const Source& source, int64_t units, cuda::Stream stream) {
  constexpr int64_t kUnits = sizeof(Unit) < 4 ? 4 / sizeof(Unit) : 1;
  const cuda::Grid grid{static_cast<unsigned>(cuda::ceil_div(cuda::ceil_div(units, kUnits), kThreads))};
  return cuda::launch(executor_kernel<Unit, Source>, grid, kThreads, 0, stream, reinterpret_cast<const Unit*>(x),
                      reinterpret_cast<Unit*>(y), source, static_cast<uint32_t>(units), cuda::address(y) % 4 == 0);
}

template <class Source>
int start_units(int64_t unit, const uint8_t* x, uint8_t* y, const Source& source, int64_t units, cuda::Stream stream) {
  switch (unit) {
    case 16:
      return start<uint4>(x, y, source, units, stream);
    case 8:
      return start<uint2>(x, y, source, units, stream);
    case 4:
      return start<uint32_t>(x, y, source, units, stream);
    case 2:
      return start<uint16_t>(x, y, source, units, stream);
    default:
      return start<uint8_t>(x, y, source, units, stream);
  }
}

// The widest unit that divides everything that is or-ed into `bits`.
int64_t unit_of(uint64_t bits) {
  for (const int64_t unit : {16, 8, 4, 2}) {
    if (bits % static_cast<uint64_t>(unit) == 0) return unit;
  }
  return 1;
}

}  // namespace

int strided_copy_launch(const StridedCopy& copy, int64_t batch, int64_t src_sample_bytes, const uint8_t* x, uint8_t* y,
                        cuda::Stream stream) {
  if (batch == 0) return 0;
  if (copy.shape.size() > kMostCopyDimensions) return kInvalidValue;
  const uint8_t* begin = x + copy.src_offset;
  uint64_t bits = cuda::address(begin) | cuda::address(y) | static_cast<uint64_t>(src_sample_bytes) |
                  static_cast<uint64_t>(copy.element_bytes);
  int64_t sample_bytes = copy.element_bytes;
  for (size_t d = 0; d < copy.shape.size(); ++d) {
    bits |= static_cast<uint64_t>(copy.src_strides[d]);
    sample_bytes *= copy.shape[d];
  }
  const int64_t unit = unit_of(bits);
  Places places;
  const auto add = [&](int64_t size, int64_t stride) {
    places.shape[places.rank] = static_cast<uint32_t>(size);
    places.strides[places.rank++] = stride;
  };
  add(0, src_sample_bytes / unit);  // the batch: nothing looks at the first dimension's size
  for (size_t d = 0; d < copy.shape.size(); ++d) add(copy.shape[d], copy.src_strides[d] / unit);
  add(copy.element_bytes / unit, 1);
  const int64_t sample_units = sample_bytes / unit;
  if (sample_units == 0) return 0;
  if (sample_units > kMostUnits) return kInvalidValue;
  return cuda::launch_in_parts(batch, kMostUnits / sample_units, [&](int64_t first, int64_t count) {
    return start_units(unit, begin + first * src_sample_bytes, y + first * sample_bytes, places, count * sample_units,
                       stream);
  });
}

int gather_launch(int64_t outer, int64_t axis_length, int64_t inner_bytes, const int64_t* indices, int64_t count,
                  const uint8_t* x, uint8_t* y, cuda::Stream stream) {
  const int64_t unit = unit_of(cuda::address(x) | cuda::address(y) | static_cast<uint64_t>(inner_bytes));
  const int64_t row_units = count * (inner_bytes / unit);
  if (outer == 0 || row_units == 0) return 0;
  if (row_units > kMostUnits) return kInvalidValue;
  Rows rows;
  rows.indices = indices;
  rows.length = axis_length;
  rows.count = static_cast<uint32_t>(count);
  rows.inner = static_cast<uint32_t>(inner_bytes / unit);
  return cuda::launch_in_parts(outer, kMostUnits / row_units, [&](int64_t first, int64_t some) {
    return start_units(unit, x + first * axis_length * inner_bytes, y + first * count * inner_bytes, rows,
                       some * row_units, stream);
  });
}

}  // namespace vimtrt
