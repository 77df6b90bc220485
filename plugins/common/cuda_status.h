// What a cudaError_t says, for errors that people read.
#pragma once

#include <string>

#ifdef VIMTRT_CUDA_ON_CPU
#include "tests/cuda_on_cpu/control.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace vimtrt {
namespace cuda {

#ifdef VIMTRT_CUDA_ON_CPU
inline std::string status_text(int status) {
  return "cudaError " + std::to_string(status) + ": " + cuda_on_cpu::last_error();
}
#else
// Takes the error off the thread, so that it is not told a second time.
inline std::string status_text(int status) {
  cudaGetLastError();
  return std::string(cudaGetErrorName(static_cast<cudaError_t>(status))) + ": " +
         cudaGetErrorString(static_cast<cudaError_t>(status));
}
#endif

}  // namespace cuda
}  // namespace vimtrt
