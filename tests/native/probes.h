// What cuda.h promises, each call on given operands: what the double computes and what a GPU does are compared with the
// same numbers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plugins/common/stream.h"

namespace vimtrt {
namespace probes {

// d += a * b^T: a int8 [16, 32], b int8 [8, 32], d int32 [16, 8]; a comes through ldmatrix_x4 or with plain reads.
int multiply(const int8_t* a, const int8_t* b, int32_t* d, bool with_ldmatrix, cuda::Stream stream);

// xored[mask][lane] = shuffle_xor(x[lane], mask), sent[source][lane] = shuffle(x[lane], source); x of 32 numbers.
template <class T>
int shuffle(const T* x, T* xored, T* sent, cuda::Stream stream);

// d[i] = dp4a(a[i], b[i], c[i]) and d[i] = byte_permute(a[i], b[i], c[i]), the bits of 32 numbers.
int dp4a(const int32_t* a, const int32_t* b, const int32_t* c, int32_t* d, cuda::Stream stream);
int byte_permute(const int32_t* a, const int32_t* b, const int32_t* c, int32_t* d, cuda::Stream stream);

// y[i] = x[i] * factor, without shared memory.
int scale(const float* x, float factor, float* y, int n, cuda::Stream stream);

// A kernel that does nothing, in x * y * z blocks.
int launch_nothing(unsigned x, unsigned y, unsigned z, unsigned threads, size_t shared_bytes, cuda::Stream stream);

}  // namespace probes
}  // namespace vimtrt
