// Loops unrolled before the optimizer runs, so that arrays of vector registers stay in registers. GCC unrolls plain
// loops too late: it has decided by then to keep such an array on the stack.
//
//   unroll<4>([&](auto i) VIMTRT_ALWAYS_INLINE { acc[i] = ...; });
#pragma once

#define VIMTRT_ALWAYS_INLINE __attribute__((always_inline))

namespace vimtrt {
namespace {

template <int I>
struct Index {
  VIMTRT_ALWAYS_INLINE constexpr operator int() const { return I; }
};

template <int Count, int First = 0, class Body>
VIMTRT_ALWAYS_INLINE inline void unroll(const Body& body) {
  if constexpr (First < Count) {
    body(Index<First>{});
    unroll<Count, First + 1>(body);
  }
}

}  // namespace
}  // namespace vimtrt
