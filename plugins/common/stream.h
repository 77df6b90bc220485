// A CUDA stream as launchers take it: the type behind cudaStream_t, so that a kernel.h needs no header of CUDA.
#pragma once

struct CUstream_st;

namespace vimtrt {
namespace cuda {

using Stream = CUstream_st*;

}  // namespace cuda
}  // namespace vimtrt
