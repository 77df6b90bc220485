// The GPU's executor for Python: for pyvimtrt._cuda and for the tests' modules.
#pragma once

#include <nanobind/nanobind.h>

namespace vimtrt {

void bind_cuda_program(nanobind::module_& module);

}  // namespace vimtrt
