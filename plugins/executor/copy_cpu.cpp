#include "plugins/executor/copy_cpu.h"

#include <cstring>

#include "plugins/common/threads.h"

namespace vimtrt {
namespace {

constexpr int64_t kMinBytesPerThread = 16384;  // less than this is copied faster than a thread wakes up
constexpr int64_t kPieceBytes = 32768;         // that a thread copies at a time

// `count` elements from a strided source; a fixed size lets the compiler turn memcpy into a move.
template <int64_t kBytes>
void copy_run(const uint8_t* x, int64_t stride_bytes, int64_t count, uint8_t* y) {
  for (int64_t i = 0; i < count; ++i) std::memcpy(y + i * kBytes, x + i * stride_bytes, kBytes);
}

void copy_run(int64_t bytes, const uint8_t* x, int64_t stride_bytes, int64_t count, uint8_t* y) {
  switch (bytes) {
    case 1:
      return copy_run<1>(x, stride_bytes, count, y);
    case 2:
      return copy_run<2>(x, stride_bytes, count, y);
    case 4:
      return copy_run<4>(x, stride_bytes, count, y);
    case 8:
      return copy_run<8>(x, stride_bytes, count, y);
    case 16:
      return copy_run<16>(x, stride_bytes, count, y);
    case 32:
      return copy_run<32>(x, stride_bytes, count, y);
    default:
      for (int64_t i = 0; i < count; ++i) std::memcpy(y + i * bytes, x + i * stride_bytes, static_cast<size_t>(bytes));
  }
}

// Copies of `bytes` each, for as many threads as are worth it.
RangeCut cut_copies(int64_t copies, int64_t bytes, int threads) {
  const int64_t useful = copies * bytes / kMinBytesPerThread + 1;
  const int64_t piece = bytes < kPieceBytes ? kPieceBytes / bytes : 1;
  return {copies, piece, useful < threads ? static_cast<int>(useful) : threads};
}

}  // namespace

void strided_copy(const StridedCopy& copy, int64_t batch, int64_t src_sample_bytes, const uint8_t* x, uint8_t* y,
                  int threads) {
  const size_t outer_dims = copy.shape.size() - 1;
  const int64_t run = copy.shape[outer_dims];
  int64_t runs = 1;
  for (size_t d = 0; d < outer_dims; ++d) runs *= copy.shape[d];
  const int64_t run_bytes = run * copy.element_bytes;
  run_workers(threads, cut_copies(batch * runs, run_bytes, threads), [&](int, auto& pieces) {
    for (WorkRange range; pieces.next(range);) {
      for (int64_t i = range.begin; i < range.end; ++i) {
        int64_t rest = i % runs;
        int64_t at = i / runs * src_sample_bytes + copy.src_offset;
        for (size_t d = outer_dims; d-- > 0;) {
          at += rest % copy.shape[d] * copy.src_strides[d];
          rest /= copy.shape[d];
        }
        copy_run(copy.element_bytes, x + at, copy.src_strides[outer_dims], run, y + i * run_bytes);
      }
    }
  });
}

void gather(int64_t outer, int64_t axis_length, int64_t inner_bytes, const int64_t* indices, int64_t count,
            const uint8_t* x, uint8_t* y, int threads) {
  run_workers(threads, cut_copies(outer * count, inner_bytes, threads), [&](int, auto& pieces) {
    for (WorkRange range; pieces.next(range);) {
      int64_t o = range.begin / count;
      int64_t j = range.begin % count;
      for (int64_t i = range.begin; i < range.end; ++i) {
        std::memcpy(y + i * inner_bytes, x + (o * axis_length + indices[j]) * inner_bytes,
                    static_cast<size_t>(inner_bytes));
        if (++j == count) {
          j = 0;
          ++o;
        }
      }
    }
  });
}

}  // namespace vimtrt
