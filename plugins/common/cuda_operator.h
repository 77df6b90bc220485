// An operator on a GPU: the one way to start its kernel that knows no operator.
#pragma once

#include <cstddef>

#include "plugins/common/op.h"
#include "plugins/common/stream.h"

namespace vimtrt {

struct CudaOperator {
  // Device memory beside the operands, aligned to 16; looks at sizes alone and does not shrink when the batch grows.
  size_t (*workspace_bytes)(const Arguments& arguments);
  // Starts the kernel on `stream`; asynchronous. All pointers are device memory. Returns 0 or a cudaError_t.
  int (*launch)(const Arguments& arguments, cuda::Stream stream, void* workspace);
};

// Of a kernel that needs no workspace.
template <class Params, Params (*bind)(const Arguments&), int (*start)(const Params&, cuda::Stream)>
constexpr CudaOperator cuda_operator() {
  return {[](const Arguments&) -> size_t { return 0; },
          [](const Arguments& arguments, cuda::Stream stream, void*) { return start(bind(arguments), stream); }};
}

// Of one that may.
template <class Params, Params (*bind)(const Arguments&), size_t (*workspace_bytes)(const Params&),
          int (*start)(const Params&, cuda::Stream, void*)>
constexpr CudaOperator cuda_operator_with_workspace() {
  return {[](const Arguments& arguments) { return workspace_bytes(bind(arguments)); },
          [](const Arguments& arguments, cuda::Stream stream, void* workspace) {
            return start(bind(arguments), stream, workspace);
          }};
}

}  // namespace vimtrt
