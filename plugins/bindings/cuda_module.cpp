// pyvimtrt._cuda: the GPU's executor for Python. The types are in pyvimtrt/_cuda.pyi.
#include <cuda_runtime_api.h>

#include "plugins/bindings/cuda_program_binding.h"

NB_MODULE(_cuda, m) {
  m.doc() = "The native CUDA engine.";
  vimtrt::bind_cuda_program(m);
  m.attr("cuda_version") = CUDART_VERSION;
  m.attr("architectures") = VIMTRT_ARCHITECTURES;
}
