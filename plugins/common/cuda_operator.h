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
  // Of operators whose small nodes are started two at a time, else null: whether two nodes can be, whatever the batch;
  // and their launch, where neither reads what the other writes.
  bool (*can_pair)(const Arguments& a, const Arguments& b) = nullptr;
  int (*launch_pair)(const Arguments& a, const Arguments& b, cuda::Stream stream) = nullptr;
};

// Of a kernel that needs no workspace.
template <class Params, Params (*bind)(const Arguments&), int (*start)(const Params&, cuda::Stream)>
constexpr CudaOperator cuda_operator() {
  return {[](const Arguments&) -> size_t { return 0; },
          [](const Arguments& arguments, cuda::Stream stream, void*) { return start(bind(arguments), stream); }};
}

// The same, of one that takes pairs.
template <class Params, Params (*bind)(const Arguments&), int (*start)(const Params&, cuda::Stream),
          bool (*can_pair)(const Params&, const Params&), int (*start_pair)(const Params&, const Params&, cuda::Stream)>
constexpr CudaOperator cuda_operator_with_pairs() {
  CudaOperator table = cuda_operator<Params, bind, start>();
  table.can_pair = [](const Arguments& a, const Arguments& b) { return can_pair(bind(a), bind(b)); };
  table.launch_pair = [](const Arguments& a, const Arguments& b, cuda::Stream stream) {
    return start_pair(bind(a), bind(b), stream);
  };
  return table;
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
